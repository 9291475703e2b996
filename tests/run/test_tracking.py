"""A run's record: files that survive kills, full disks and resumes, and one W&B run per launch with equal content."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.jsonl import JsonLines, read_rows
from mini_llm.engine.run.signals import Interrupted
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.engine.tracking.wandb_mirror import _waiting, resolve_mode
from mini_llm.engine.tracking.wandb_runs import OWNER, default_group, stable_id

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-0123456789abcdef"
FILES_ONLY = TrackingConfig(wandb="disabled")
OFFLINE = TrackingConfig(wandb="offline", group="night", tags=["small"])
CONFIG = {"optim": {"lr": 0.001}, "sources": ["a", "b"], "tracking": {"wandb": "offline"}}


@pytest.fixture(autouse=True)
def no_wandb_of_the_caller(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MINI_LLM_WANDB"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def python(code: str, *arguments: str, **variables: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fragments(directory: Path) -> list[Path]:
    return sorted((directory / "wandb").glob("offline-run-*"))


def records(fragment: Path) -> list[dict]:
    """What `wandb leet inspect --json` reads back; the program behind it, without a second of Python imports."""
    import wandb

    wandb.teardown()  # its service writes the last records up to a second after a run has ended
    core = Path(wandb.__file__).parent / "bin" / "wandb-core"
    command = [core, "leet", "inspect", "--no-observability", "--json"]
    command += ["--run-file", *fragment.glob("*.wandb"), fragment]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_type(found: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in found if record["type"] == kind]


# metrics.jsonl


def test_equal_values_are_written_as_equal_bytes(tmp_path):
    import numpy as np

    for name in ("one", "two"):
        with Tracker(tmp_path / name, FILES_ONLY, "pretrain", {}) as tracker:
            tracker.log(1, {"train/loss": 0.1 + 0.2, "count": np.int64(3)}, {"tokens_per_second": time.monotonic()})
    assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / "two/metrics.jsonl").read_bytes()
    assert read_rows(tmp_path / "one/metrics.jsonl") == [{"step": 1, "train/loss": 0.1 + 0.2, "count": 3}]


def test_non_finite_values_become_null(tmp_path):
    with Tracker(tmp_path, FILES_ONLY, "pretrain", {}) as tracker:
        tracker.log(1, {"train/loss": math.nan, "norm": math.inf})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": null, "norm": null}\n'


def test_rewind_drops_the_rows_after_a_step(tmp_path):
    with Tracker(tmp_path, FILES_ONLY, "pretrain", {}) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"train/loss": step}, {"elapsed": step})
        tracker.rewind(3)
        tracker.log(4, {"train/loss": 40})
    assert [row["train/loss"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 40]
    assert [row["step"] for row in read_rows(tmp_path / "timing.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("torn", ['{"step": 3, "tr', '{"step": 3}', "\x00\x00\x00", '{"step": 3\n{"step": 4}\n'])
def test_an_incomplete_or_damaged_line_is_repaired_on_open(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    file = JsonLines(path)
    file.append({"step": 9})
    file.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps in ([1, 2, 9], [1, 2, 4, 9])


def test_a_killed_writer_leaves_complete_rows(tmp_path):
    code = (
        "import sys; from mini_llm.engine.run.jsonl import JsonLines; file = JsonLines(sys.argv[1]); step = 0\n"
        "while True:\n step += 1; file.append({'step': step, 'text': 'x' * 200})"
    )
    process = python(code, str(tmp_path / "m.jsonl"))
    while not (tmp_path / "m.jsonl").is_file() or (tmp_path / "m.jsonl").stat().st_size < 100_000:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    JsonLines(tmp_path / "m.jsonl").close()
    steps = [row["step"] for row in read_rows(tmp_path / "m.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert len((tmp_path / "m.jsonl").read_bytes().splitlines()) == len(steps)


def test_a_full_disk_loses_rows_with_one_warning_and_the_run_continues(tmp_path, monkeypatch, capsys):
    with Tracker(tmp_path, FILES_ONLY, "pretrain", {}) as tracker:
        tracker.log(1, {"loss": 1})
        write = os.write
        with monkeypatch.context() as patch:

            def half_then_full(handle, data):
                if len(data) < 10:
                    raise OSError(28, "No space left on device")
                return write(handle, data[: len(data) - 5])

            patch.setattr(os, "write", half_then_full)
            tracker.log(2, {"loss": 2})
            tracker.log(3, {"loss": 3})
        tracker.log(4, {"loss": 4})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 4]
    assert capsys.readouterr().err.count("No space left") == 1


# W&B


@pytest.mark.slow
def test_offline_runs_read_back_equal_the_files_across_a_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    run, model = tmp_path / "gpt", tmp_path / "gpt" / "model"
    config = {**CONFIG, "note": f"key {CANARY}", "url": "https://me:pass@host/x"}
    with RunDirectory(run) as directory, Tracker(run, OFFLINE, "pretrain", config) as tracker:
        directory.record(config)
        for step in (1, 2, 3):
            tracker.log(step, {"train/loss": 1 / step, "train/lr": 0.1}, {"tokens_per_second": 5.0})
        tracker.table("samples", ["prompt", "text"], [["def", "def f():"]], step=3)
        tracker.summary({"val/bpb": 2.5, "scores": [{"name": "gpt", "accuracy": 0.5}]})
        model.mkdir()
        (model / "config.json").write_text("{}")
        tracker.artifact("model-gpt", "model", model, {"tokenizer": "abc"})
        time.sleep(1)  # W&B first looks at the system a moment after the start
    first_output = capsys.readouterr().err
    (first,) = fragments(run)
    found = records(first)

    (started,) = of_type(found, "run")
    sent = dict(started["config"]["update"])
    sent.pop("_wandb")
    assert sent == {**CONFIG, "note": "key ***", "url": "https://***@host/x"}
    assert (started["job_type"], started["run_group"], started["tags"]) == ("pretrain", "night", ["small"])
    metrics = [metric for metric in of_type(found, "metric") if metric.get("glob_name") == "*"]
    assert [metric["step_metric"] for metric in metrics] == ["train/step"]
    history = [item["item"] for item in of_type(found, "history") if "train/loss" in item["item"]]
    mirrored = [{"step": row["train/step"], **{k: row[k] for k in ("train/loss", "train/lr")}} for row in history]
    assert mirrored == read_rows(run / "metrics.jsonl")
    assert [row["timing/tokens_per_second"] for row in history] == [5.0] * 3

    (recorded,) = read_rows(run / "artifacts.jsonl")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert recorded["path"] == "model" and recorded["files"] == {"config.json": {"size": 2, "sha256": digest}}
    (artifact,) = [item for item in of_type(found, "artifact") if item["type"] == "model"]
    metadata = json.loads(artifact["metadata"])
    assert (metadata["tokenizer"], metadata["files"]["config.json"]["sha256"]) == ("abc", digest)
    assert artifact["manifest"]["contents"][0]["local_path"] == str(model / "config.json")
    assert len(list(first.glob("files/media/table/*.table.json"))) == 1
    assert of_type(found, "stats"), "system metrics"
    assert of_type(found, "exit")[0].get("exit_code", 0) == 0
    assert first_output.count("mini_llm sync") == 1

    with pytest.raises(CheckpointError), Tracker(run, OFFLINE, "pretrain", config) as tracker:
        tracker.rewind(2)
        tracker.log(3, {"train/loss": 0.3})
        raise CheckpointError("damaged")
    second = next(fragment for fragment in fragments(run) if fragment != first)
    resumed = records(second)
    assert len(fragments(run)) == 2 and len(of_type(resumed, "run")) == 1
    assert (
        of_type(resumed, "run")[0]["run_id"] == started["run_id"] == json.loads((run / "wandb.json").read_text())["id"]
    )
    assert of_type(resumed, "exit")[0]["exit_code"] == 4
    assert capsys.readouterr().err.count("mini_llm sync") == 1
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == [1, 2, 3]

    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert everything and not [path for path in everything if CANARY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path):
    code = (
        "import os, sys\n"
        "from mini_llm.engine.tracking.tracker import Tracker; from mini_llm.engine.settings import TrackingConfig\n"
        "with Tracker(sys.argv[1], TrackingConfig(wandb='offline'), 'pretrain', {}, os.environ['RANK'] == '0') as t:\n"
        "    t.log(1, {'train/loss': 1.0}); t.table('x', ['a'], [[1]]); t.summary({'a': 1}); t.rewind(1); t.sync()\n"
    )
    ranks = [python(code, str(tmp_path / "run"), RANK=str(rank)) for rank in range(2)]
    for rank in ranks:
        _, errors = rank.communicate(timeout=60)
        assert rank.returncode == 0, errors
    (fragment,) = fragments(tmp_path / "run")
    assert len(of_type(records(fragment), "run")) == 1
    assert read_rows(tmp_path / "run/metrics.jsonl") == [{"step": 1, "train/loss": 1.0}]


def test_disabled_imports_no_wandb_and_the_modules_import_nothing_heavy(tmp_path):
    code = (
        "import sys; import mini_llm.engine.report.page, mini_llm.engine.report.summary\n"
        "import mini_llm.engine.run.progress, mini_llm.engine.run.directory\n"
        "from mini_llm.engine.tracking.tracker import Tracker; from mini_llm.engine.settings import TrackingConfig\n"
        "with Tracker(sys.argv[1], TrackingConfig(wandb='disabled'), 'pretrain', {}) as t: t.log(1, {'a': 1.0})\n"
        "print([m for m in ('torch', 'wandb', 'pandas', 'datasets', 'transformers') if m in sys.modules])"
    )
    output, errors = python(code, str(tmp_path)).communicate(timeout=60)
    assert output.strip() == "[]", errors


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [
        ("auto", None, "auto"),
        ("auto", "disabled", "disabled"),
        ("auto", "dryrun", "offline"),
        ("auto", "online", "online"),
        ("auto", "nonsense", "offline"),
        ("offline", "online", "offline"),
    ],
)
def test_wandb_mode_decides_for_auto(monkeypatch, configured, variable, expected):
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert resolve_mode(configured) == expected


@pytest.mark.parametrize("configured", ["auto", "online"])
def test_without_a_key_nothing_is_asked_and_the_run_stays_offline(tmp_path, configured, capsys):
    with Tracker(tmp_path / "run", TrackingConfig(wandb=configured), "pretrain", {}) as tracker:
        tracker.log(1, {"train/loss": 1.0})
    assert len(fragments(tmp_path / "run")) == 1
    assert capsys.readouterr().err.count("W&B has no key") == (configured == "online")


def test_a_wandb_that_cannot_be_imported_costs_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Tracker(tmp_path, OFFLINE, "pretrain", {}) as tracker:
        tracker.log(1, {"train/loss": 1.0})
        tracker.summary({"a": 1})
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    assert capsys.readouterr().err.count("W&B is not used") == 1


def test_summaries_merge_and_artifacts_are_listed_once(tmp_path):
    (tmp_path / "t.model").write_bytes(b"x")
    for _ in range(2):
        with Tracker(tmp_path, FILES_ONLY, "tokenizer", {}) as tracker:
            tracker.artifact("tokenizer", "tokenizer", tmp_path / "t.model")
    with Tracker(tmp_path, FILES_ONLY, "tokenizer", {}) as tracker:
        tracker.summary({"a": 1, "b": 2})
        tracker.summary({"b": math.nan})
    assert len(read_rows(tmp_path / "artifacts.jsonl")) == 1
    assert json.loads((tmp_path / "summary.json").read_text()) == {"job_type": "tokenizer", "a": 1, "b": None}


@pytest.mark.slow
def test_work_with_a_finished_run_has_a_wandb_run_of_its_own_that_uses_the_model(tmp_path):
    run = tmp_path / "gpt"
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_text("{}")
    with Tracker(run, OFFLINE, "pretrain", {"seed": 1}) as tracker:
        tracker.log(1, {"train/loss": 2.0, "train/clm": True})
        tracker.log(2, {"train/loss": 5.0})
        tracker.has_best_weights = True
        tracker.artifact("gpt", "model", run / "model")
        tracker.artifact("tokens-1", "dataset", run / "model" / "config.json")
        tracker.best(2, {"val/loss": 5.0})
    before = (run / "wandb.json").read_bytes()
    with Tracker(run, OFFLINE, "generate", {"seed": 7}, apart=True) as tracker:
        tracker.uses("gpt", "model", run / "model")
        tracker.table("samples", ["text"], [["x"]])
    assert (run / "wandb.json").read_bytes() == before and len(read_rows(run / "artifacts.jsonl")) == 2
    (run / "config.yaml").touch()
    with pytest.raises(Interrupted), Tracker(tmp_path / "cls", OFFLINE, "finetune", {}, start=run / "model"):
        raise Interrupted("stopped at step 3", 15)

    found = {of_type(each, "run")[0]["job_type"]: each for each in map(records, fragments(run))}
    (first,), (second,) = of_type(found["pretrain"], "run"), of_type(found["generate"], "run")
    assert first["run_id"] == json.loads(before)["id"] != second["run_id"]
    assert (first["config"]["update"]["seed"], second["config"]["update"]["seed"]) == (1, 7)
    logged, read = of_type(found["pretrain"], "artifact")
    version = f"sha256-{read_rows(run / 'artifacts.jsonl')[0]['sha256'][:12]}"
    assert set(logged["aliases"]) == {"latest", version, "best"} and not logged.get("use_after_commit")
    assert read["type"] == "dataset" and read["use_after_commit"]
    (classifier,) = map(records, fragments(tmp_path / "cls"))
    for each in (found["generate"], classifier):
        used = next(item for item in of_type(each, "artifact") if item["type"] == "model")
        assert used["use_after_commit"] and (used["name"], used["digest"]) == (logged["name"], logged["digest"])
        assert version in used["aliases"] and of_type(each, "run")[0]["run_group"] == "night"
    assert [alert["title"] for alert in of_type(classifier, "alert")] == ["Interrupted"]
    assert of_type(classifier, "exit")[0]["exit_code"] == 143
    best = [item["update"] for item in of_type(found["pretrain"], "summary") if "best" in item.get("update", {})]
    assert best == [{"best": {"step": 2, "val/loss": 5.0}}]
    # The losses of two objectives are two curves.
    history = [item["item"] for item in of_type(found["pretrain"], "history")]
    assert [(row.get("train/clm_loss"), row.get("train/loss")) for row in history] == [(2, None), (None, 5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [{"WANDB_MODE": "OFFLINE", "WANDB_TAGS": "", "WANDB_ENTITY": " "}, {"WANDB_MODE": ""}]
)
def test_empty_variables_of_wandb_count_as_unset_and_modes_may_be_in_capitals(tmp_path, variables):
    code = (
        "import os, sys\n"
        "from mini_llm.engine.tracking.tracker import Tracker; from mini_llm.engine.settings import TrackingConfig\n"
        "before = dict(os.environ)\n"
        "with Tracker(sys.argv[1], TrackingConfig(), 'pretrain', {}) as tracker: tracker.log(1, {'train/loss': 1.0})\n"
        "names = [name for name in {*before, *os.environ} if name.startswith('WANDB_')]\n"
        "print([name for name in names if before.get(name) != os.environ.get(name) and name in before])"
    )
    output, errors = python(code, str(tmp_path / "run"), **variables).communicate(timeout=120)
    assert len(fragments(tmp_path / "run")) == 1 and "not used" not in errors, errors
    assert output.strip() == "[]", "the variables are as before"


def test_wandb_run_id_is_for_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    monkeypatch.setenv(OWNER, "gpt-trial7")
    for name in ("tokenizer-x", "gpt-trial7", "copy"):
        (tmp_path / name).mkdir()
    assert stable_id(tmp_path / "tokenizer-x", "p") != "trial7", "what the run trains first"
    assert stable_id(tmp_path / "gpt-trial7", "p") == "trial7" == stable_id(tmp_path / "gpt-trial7", "p")
    monkeypatch.delenv(OWNER)
    assert stable_id(tmp_path / "copy", "p") != "trial7", "another run has it"


@pytest.mark.slow
def test_the_hint_of_what_a_run_trains_first_waits_for_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(OWNER, "gpt")
    with Tracker(tmp_path / "gpt", OFFLINE, "pretrain", {}) as tracker:
        with Tracker(tmp_path / "tokenizer", OFFLINE, "tokenizer", {}):
            pass
        assert "mini_llm sync" not in capsys.readouterr().err
        tracker.log(1, {"train/loss": 1.0})
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "mini_llm sync" in line]
    assert "/tokenizer" in line and line.endswith("/gpt")
    monkeypatch.setenv("MINI_LLM_WANDB_HINT", "no")
    with Tracker(tmp_path / "gpt", OFFLINE, "pretrain", {}):
        pass
    assert "mini_llm sync" not in capsys.readouterr().err
    _waiting.clear()


def test_the_stages_of_a_model_share_a_group(tmp_path, monkeypatch):
    monkeypatch.setenv(OWNER, "gpt")
    assert default_group(tmp_path / "tokenizer", None) == "gpt", "what the run trains first"
    monkeypatch.delenv(OWNER)
    gpt = tmp_path / "gpt"
    (gpt / "model").mkdir(parents=True)
    (gpt / "config.yaml").touch()
    assert default_group(gpt, None) == "gpt" == default_group(tmp_path / "classifier", gpt / "model")
    stable_id(gpt, "p", "night")
    assert default_group(tmp_path / "classifier", gpt / "model") == "night" == default_group(gpt, None)
    first = stable_id(gpt, "p", "night")
    assert stable_id(gpt, "p", "day") == first and default_group(gpt, None) == "day"
