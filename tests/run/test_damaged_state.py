"""A damaged state file of a run is named, set aside by the run, and left out by readers; nothing ends with a crash."""

import json
import os
import random
import shutil
from types import SimpleNamespace

import pytest

from chaos.mutations import mutate
from mini_llm import __main__ as commands
from mini_llm.engine.budget import StepBudget
from mini_llm.engine.cli import run_app
from mini_llm.engine.report import charts, classifier_charts
from mini_llm.engine.run import state
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import open_regular, read_json
from mini_llm.engine.run.jsonl import JsonLines, read_rows
from mini_llm.engine.run.state import Finished, Table, parse_json, read_object, read_state
from mini_llm.engine.settings import LoopConfig, TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker
from pretrain.choices import Choices

CONFIG = {"optim": {"lr": 0.003}, "seed": 1}
QUIET = TrackingConfig(wandb="disabled")
PLAN = {
    "schedule": {"total": 9, "warmup": 0, "knots": [[0, 1.0], [9, 0.0]]},
    **{"evaluate_every": 2, "save_every": 3, "next_review": 4, "history": []},
}


@pytest.fixture(autouse=True)
def said_again():
    """Messages are printed once per process."""
    state.say.cache_clear()


@pytest.fixture
def path(tmp_path):
    """A finished run with every kind of state file."""
    with RunDirectory(tmp_path / "run") as run:
        run.record(CONFIG, "pretrain")
        with Tracker(run.path, QUIET, "finetune", CONFIG) as tracker:
            for step in range(1, 6):
                tracker.log(step, {"train/loss": 1 / step, "val/accuracy": 0.5}, {"mfu": 0.3})
            tracker.table("samples", ["prompt", "text"], [["a", "b"]])
            tracker.table("confusion", ["x", "y"], [[3, 1], [0, 2]])
            tracker.table(
                "per_class", ["name", "f1", "f1_low", "f1_high"], [["x", 0.5, 0.4, 0.6], ["y", 1, None, None]]
            )
            tracker.table("pieces", ["piece", "id", "kind"], [["the", 5, "piece"], ["\n", 7, "byte"]])
            tracker.table(
                "reliability", ["stage", "p", "a", "rows"], [["before", 0.6, 0.5, 20], ["after", 0.6, 0.5, 20]]
            )
            tracker.table("risk_coverage", ["coverage", "risk", "threshold"], [[0.1, 0, 0.99], [1, 0.2, 0.5]])
            tracker.table("precision_recall", ["name", "recall", "precision"], [["x", 0, 1], ["x", 1, 0.6]])
            scores = [{"name": "run", "accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8}]
            tracker.summary({"objective": "classification", "scores": scores, "parameters": 12, "train_seconds": 1.5})
        (run.path / "plan.json").write_text(json.dumps(PLAN))
        run.finish({"val/loss": 0.2})
    return run.path


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        run_app(commands.app, "mini_llm", list(map(str, arguments)))
    return ended.value.code or 0


def reopen(path):
    """What a resumed run reads: its configuration, end, plan, metrics and summary."""
    with RunDirectory(path) as run:
        run.compare_config(CONFIG)
        run.as_requested(CONFIG)
        run.record(CONFIG, "pretrain")
        assert run.finished is None or run.finished["scores"] is not None
        run.describe_finished()
        accelerator = SimpleNamespace(is_main_process=True, num_processes=1)
        StepBudget(run, LoopConfig(max_steps=9), 1.0, accelerator)
        with Tracker(run.path, QUIET, "finetune", CONFIG) as tracker:
            tracker.rewind(3)
            tracker.summary({"parameters": 12})
            tracker.table("samples", ["prompt", "text"], [["a", "b"]])


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "1e999", str(10**30), "[" * 100_000, "{", "", '"\xff', "1" * 5000]
)
def test_what_no_reader_could_use_is_not_parsed(text):
    with pytest.raises(ValueError):
        parse_json(text.encode("latin-1"))


def test_lone_surrogates_become_replacement_characters(tmp_path):
    assert parse_json('{"\\ud800": ["\\udfff", "\\ud83d\\ude00"]}') == {"\ufffd": ["\ufffd", "\U0001f600"]}


@pytest.mark.parametrize(
    "content, reason",
    [
        ("[]", "Finished"),
        ('{"scores": 5}', "scores: "),
        ("{", "Expecting property name"),
        ('{"seconds": 1}', "scores: "),
    ],
)
def test_a_damaged_file_is_named_and_set_aside_by_its_owner_only(content, reason, tmp_path, capsys):
    path = tmp_path / "finished.json"
    for number in ("", "-2"):
        path.write_text(content)
        assert read_state(path, Finished) is None and path.exists()
        error = capsys.readouterr().err
        assert f"{path}: damaged (" in error and reason in error and "left out" in error
        state.say.cache_clear()
        assert read_object(path, Finished, aside=True) == {} and not path.exists()
        assert f"renamed to finished.json.damaged{number}" in capsys.readouterr().err
        assert (tmp_path / f"finished.json.damaged{number}").read_text() == content
        state.say.cache_clear()
    assert read_state(path, Finished) is None and capsys.readouterr().err == ""


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_read(make, tmp_path, capsys):
    make(tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") is None and read_rows(tmp_path / "x.json") == []
    assert "not a regular file" in capsys.readouterr().err
    with pytest.raises(OSError, match=r"regular|directory"):
        open_regular(tmp_path / "x.json")


def test_rows_of_a_table_get_the_length_of_its_columns():
    table = Table(columns=["a", "b"], rows=[["x"], ["x", "y", "z"], []])
    assert table.columns == ["a", "b", ""]
    assert table.rows == [["x", None, None], ["x", "y", "z"], [None] * 3]


def test_damaged_lines_are_removed_and_kept_in_a_copy(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    bad = b'{"step": "x"}\n{"step": null}\n[1]\nNaN\n\xff\n{"step": 1e999}\n\n'
    data = b'{"step": 1}\n' + bad + b'{"step": 2}\n{"a": 1}\n{"step": 3'
    path.write_bytes(data)
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"a": 1}]
    assert f"{path}: 7 damaged lines are left out" in capsys.readouterr().err
    file = JsonLines(path)
    file.append({"step": 3})
    file.close()
    assert [row.get("step") for row in read_rows(path)] == [1, 2, None, 3]
    assert "7 damaged lines are removed" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == data


def test_a_torn_last_line_is_no_damage(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    JsonLines(path).close()
    assert path.read_bytes() == b'{"step": 1}\n' and os.listdir(tmp_path) == ["metrics.jsonl"]
    assert capsys.readouterr().err == ""


def test_a_run_goes_on_with_its_requested_configuration_when_the_other_is_damaged(path, capsys):
    (path / "config.yaml").write_text("optim: [")
    with RunDirectory(path) as run:
        assert run.compare_config(CONFIG) == []
        assert "config.yaml.damaged" in capsys.readouterr().err
        run.record(CONFIG)
    (path / "requested.yaml").write_bytes(b"\xff\xfe")
    with RunDirectory(path) as run:
        (note,) = run.compare_config({**CONFIG, "seed": 2})
        assert "the one it began with is damaged" in note and (path / "requested.yaml.damaged").is_file()
        assert run.requested() == CONFIG  # that of config.yaml


def test_the_run_sets_aside_what_is_no_file_or_folder(path, capsys):
    for name in ("metrics.jsonl", "plan.json"):
        (path / name).unlink()
    os.mkfifo(path / "metrics.jsonl")
    (path / "plan.json").mkdir()
    shutil.rmtree(path / "tables")
    (path / "tables").write_text("")
    reopen(path)
    assert {f"{name}.damaged" for name in ("metrics.jsonl", "plan.json", "tables")} <= set(os.listdir(path))
    assert (path / "tables" / "samples.json").is_file() and (path / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    "content",
    [
        {"sizes": {"hidden_size": "x"}, "global_batch_size": 8, "compile": False},
        {"sizes": {"no_such": 1}, "global_batch_size": 8, "compile": False},
        {"sizes": {}, "global_batch_size": 0, "compile": False},
        {"sizes": {}},
        [],
    ],
)
def test_choices_of_other_types_are_refused(content, tmp_path):
    (tmp_path / "choices.json").write_text(json.dumps(content))
    assert read_state(tmp_path / "choices.json", Choices) is None


def test_one_damaged_run_does_not_end_the_reports_of_the_others(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(charts, "draw", lambda panel: "<svg></svg>")
    monkeypatch.setattr(classifier_charts, "classifier_charts", lambda run: [])
    other = shutil.copytree(path, tmp_path / "run2")
    (path / "summary.json").write_text('{"job_type": ["x"], "scores": {}}')
    (path / "tables" / "samples.json").write_text('{"columns": {}, "rows": 3}')
    assert command("report", "--runs", tmp_path) == 0
    error = capsys.readouterr().err
    assert "run/summary.json: damaged (job_type: " in error and "samples.json: damaged (columns: " in error
    assert error.count("summary.json") == 1, "named once"
    assert (path / "report.html").is_file() and (other / "report.html").is_file()
    # Even where the writer of one report fails.
    monkeypatch.setattr("mini_llm.engine.report.record.Run.figures", lambda run: [1][: run.name != "run"][0] and [])
    (other / "report.html").unlink()
    assert command("report", path, other, tmp_path / "nothing") == 1
    assert (other / "report.html").is_file()
    assert "nothing: not a run directory" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ten_random_mutations_end_no_command(seed, path, tmp_path, monkeypatch, capsys):
    """`python -m chaos --only 61` does this with 300 mutations and all commands that read a run."""
    # Drawing takes a second per run: the charts of one run in ten are drawn.
    real = charts.drawing
    for number in range(10):
        runs = tmp_path / f"runs-{number}"
        for name in ("run", "other"):
            shutil.copytree(path, runs / name)
        with monkeypatch.context() as patch:
            if number:
                patch.setattr(charts, "draw", lambda panel: "<svg></svg>")
                patch.setattr(classifier_charts, "classifier_charts", lambda run: [])
            else:
                assert charts.drawing is real
            what = mutate(runs / "run", random.Random(f"{seed}-{number}"))
            for words in (["report", "--runs", runs], ["summary", runs / "run", runs / "other"]):
                code = command(*words)
                out = capsys.readouterr()
                said = f"{seed}-{number} {what}: {words[0]}: {code}: {out.err}"
                assert code in (0, 2, 3, 4) and "internal error" not in out.err, said
            assert (runs / "other" / "report.html").is_file(), what
            reopen(runs / "run")
            if number % 2:
                assert command("report", runs / "run") == 0, what
