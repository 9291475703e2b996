"""`python -m mini_llm runs` and `watch`: what they say about runs is true, and no damaged run ends them."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from mini_llm.__main__ import app
from mini_llm.engine.all_runs.braille import draw
from mini_llm.engine.all_runs.difference import differences, print_differences
from mini_llm.engine.all_runs.facts import facts, find_run
from mini_llm.engine.all_runs.lineage import chain, children, graph, print_lineage
from mini_llm.engine.all_runs.removal import remove_runs
from mini_llm.engine.all_runs.table import print_run, print_runs
from mini_llm.engine.all_runs.verification import print_verification, verify_run
from mini_llm.engine.all_runs.watching import view, watch
from mini_llm.engine.checkpoint.format import write_manifest
from mini_llm.engine.cli import run_app
from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.tracker import Tracker

ROOT = Path(__file__).parents[2]
CONFIG = {"seed": 0, "optim": {"lr": 0.003}, "corpus": {"sources": [{"path": "book.txt"}]}, "tokenizer": None}


def make_run(path: Path, config: dict | None = None, finish: bool = True, **summary) -> Path:
    """A pretraining run of 12 steps with a checkpoint and a model."""
    config = config or CONFIG
    with RunDirectory(path) as run:
        run.record(config, "pretrain")
        with Tracker(path, TrackingConfig(wandb="disabled"), "pretrain", config) as tracker:
            for step in range(1, 13):
                rates = {"tokens_per_second": 1000.0, "mfu": 0.5, "elapsed": float(step)}
                tracker.log(step, {"train/loss": 9.0 / step}, rates)
            tracker.log(12, {"val/loss": 0.5, "val/bpb": 0.25})
            for folder in ("model", "checkpoints/step-00000012"):
                (path / folder).mkdir(parents=True)
                (path / folder / "config.json").write_text("{}")
                (path / folder / "model.safetensors").write_bytes(bytes(100))
            write_manifest(path / "checkpoints/step-00000012", {"step": 12})
            tracker.artifact(path.name, "model", path / "model")
            if finish:
                tracker.summary({"objective": "causal", "parameters": 1000, "tokens": 12000, "steps": 12, **summary})
        if finish:
            run.finish({"val/bpb": 0.25})
    return path


def console(width: int = 200) -> Console:
    return Console(width=width, highlight=False)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lock(path: Path, pid: int, host: str, since: str = "2026-11-29T00:00:00+00:00") -> None:
    (path / "lock.json").write_text(json.dumps({"pid": pid, "host": host, "since": since}))


def test_a_run_is_alive_stopped_or_finished(tmp_path):
    assert facts(make_run(tmp_path / "done")).state == "finished"
    stopped = make_run(tmp_path / "killed", finish=False)
    lock(stopped, 2**22 + 1, socket.gethostname())  # no process has this number
    assert facts(stopped).state == "stopped"
    with RunDirectory(stopped):
        assert facts(stopped).state == "alive"
    lock(stopped, 1, "another-host")
    assert facts(stopped).state == "alive"


def test_the_table_says_what_a_run_read_and_reached(tmp_path, capsys):
    make_run(tmp_path / "gpt", **{"val/bpb": 1.25})
    row = facts(tmp_path / "gpt")
    assert (row.parameters, row.tokens, row.steps, row.data) == (1000, 12000, 12, "book.txt")
    assert row.kind == "Pretraining: language model" and row.score == "1.250 bits per byte" and row.device
    # Still running: no summary yet. The rate of 1,000 tokens/s over the 11 s after the first step.
    early = facts(make_run(tmp_path / "early", finish=False))
    assert (early.kind, early.tokens, early.seconds) == ("Pretraining", 11000, 12.0)
    print_runs(tmp_path, True, console())
    assert {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)} == {
        "gpt": "finished",
        "early": "stopped",
    }
    print_run(tmp_path / "gpt", False, console())
    assert "step-00000012" in capsys.readouterr().out


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_table_fits_the_terminal(tmp_path, capsys, width):
    for name in ("gpt", "a-longer-name"):
        make_run(tmp_path / name, **{"val/bpb": 1.25, "task": "stars of reviews " * 9})
    print_runs(tmp_path, False, Console(width=width))
    head, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= width
    assert all("1.250 bits per byte" in line for line in lines)
    assert ("task" in head, "stage" in head) == (width == 200, width > 50)


HOSTILE = {
    "config.yaml": ["{", "- 1", "corpus: 5\ndata: {path: [1]}\npairs: {}", "corpus: {sources: {a: 1}}", "a: !!x 1"],
    "summary.json": ['{"parameters": "many", "scores": 3}', '{"scores": [{"accuracy": "a"}]}', '{"task": []}', "[]"],
    "metrics.jsonl": ['{"step": "a"}\n', "\x00\n", '{"step": 1, "elapsed": "x", "tokens_per_second": true}\n'],
    "environment.json": ['{"gpus": [], "cores": {}, "cpu": ""}', '{"gpus": 5}', "null"],
    "finished.json": ['{"scores": 1}', "{}"],
    "lock.json": ["[]", '{"pid": "a", "host": 5}', '{"pid": -1}'],
}


@pytest.mark.parametrize(("name", "content"), [(name, text) for name, texts in HOSTILE.items() for text in texts])
def test_a_damaged_run_ends_neither_the_table_nor_the_other_commands(tmp_path, capsys, name, content):
    make_run(tmp_path / "good", **{"val/bpb": 1.25})
    bad = make_run(tmp_path / "bad")
    (bad / name).write_text(content)
    print_runs(tmp_path, False, console())
    shown = capsys.readouterr().out
    assert "1.250 bits per byte" in shown and "bad" in shown
    print_run(bad, False, console())
    print_differences(bad, tmp_path / "good", False, console())
    print_lineage(bad, False, console(10_000))
    watch(bad, 1.0, True, console())


def test_a_difference_of_one_key_is_exactly_that_key(tmp_path):
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", {**CONFIG, "optim": {"lr": 0.01}, "run": "two", "tracking": {"tags": ["x"]}})
    found = differences(one, two)
    assert found["configuration"] == {"optim.lr": (0.003, 0.01)}
    assert not any(found[section] for section in ("data", "code", "environment", "curves"))


def test_data_are_compared_by_content_and_code_and_curves_are_shown(tmp_path, capsys):
    runs = []
    for name, text in (("one", "a"), ("two", "b"), ("same", "a")):
        (tmp_path / f"{name}.txt").write_text(text)
        config = {**CONFIG, "corpus": {"sources": [{"path": str(tmp_path / f"{name}.txt")}]}}
        runs.append(make_run(tmp_path / "runs" / name, config))
    assert list(differences(*runs[:2])["data"]) == ["corpus.sources.0.path"]
    assert not differences(runs[0], runs[2])["data"]
    environment = json.loads((runs[1] / "environment.json").read_text())
    (runs[1] / "environment.json").write_text(json.dumps({**environment, "code": "0123", "python": "2.7"}))
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "train/loss": 0.1}\n')
    found = differences(*runs[:2])
    assert list(found["code"]) == ["code"] and list(found["environment"]) == ["python"]
    assert found["curves"] == {"train/loss": (0.75, 0.1), "step": (12, 13)}
    print_differences(*runs[:2], False, console())
    assert "-86.7 %" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["model/model.safetensors", "checkpoints/step-00000012/model.safetensors"])
def test_verify_finds_a_flipped_byte_and_names_the_file(tmp_path, capsys, file):
    run = make_run(tmp_path / "gpt")
    print_verification([run], False, console())
    assert capsys.readouterr().out.count("ok ") == 2
    flip(run / file)
    assert [finding.damage for finding in verify_run(run) if finding.damage]
    with pytest.raises(CheckpointError, match=r"1 of 2 are damaged.*model\.safetensors"):
        print_verification([run], False, console())
    (run / file).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        print_verification([run], True, console())


def store(folder: Path, content: bytes = b"tokens") -> Path:
    """A token store with one shard; returns its manifest."""
    from mini_llm.engine.run.files import sha256

    folder.mkdir(parents=True)
    shard = {}
    for kind in ("tokens", "documents"):
        (folder / f"{kind}.bin").write_bytes(content)
        shard |= {f"{kind}_file": f"{kind}.bin", f"{kind}_sha256": sha256(folder / f"{kind}.bin")}
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": "f00d", "shards": [shard]}))
    return folder / "manifest.json"


def family(runs: Path) -> dict[str, Path]:
    """A tokenizer, its token store, a model, a classifier and an export."""
    tokenizer = runs / "tokenizer"
    with (
        RunDirectory(tokenizer) as run,
        Tracker(tokenizer, TrackingConfig(wandb="disabled"), "tokenizer", {}) as record,
    ):
        run.record(CONFIG, "tokenizer")
        (tokenizer / "tokenizer.model").write_bytes(b"vocabulary")
        record.artifact("tokenizer", "tokenizer", tokenizer / "tokenizer.model")
        record.summary({"vocab_size": 8})
    manifest = store(runs / "tokens" / "book" / "train")
    gpt = make_run(runs / "gpt", {**CONFIG, "tokenizer": str(tokenizer)})
    with Tracker(gpt, TrackingConfig(wandb="disabled"), "pretrain", {}) as record:
        record.artifact("tokens-f00d", "dataset", manifest)
    (gpt / "gpt-q8_0.gguf").write_bytes(b"GGUF")
    classifier = make_run(runs / "judge", {"model": str(gpt), "data": {"path": "stars.csv"}})
    return {"tokenizer": tokenizer, "tokens": manifest.parent, "gpt": gpt, "judge": classifier}


def test_the_lineage_goes_from_the_tokenizer_to_classifier_and_export(tmp_path, capsys):
    made = family(tmp_path / "runs")
    nodes = graph([made[name] for name in ("tokenizer", "gpt", "judge")])
    assert [node.path for node in chain(nodes, made["judge"])] == list(made.values())
    assert [node.kind for node in chain(nodes, made["judge"])] == ["tokenizer", "tokens", "model", "classifier"]
    assert children(made["gpt"]) == [made["judge"]]
    print_lineage(made["gpt"], False, console(10_000))
    lines = capsys.readouterr().out.splitlines()
    assert [line.lstrip(" \u2502\u251c\u2514\u2500").split("  ")[1] for line in lines] == [
        *("tokenizer", "tokens", "model", "export", "classifier")
    ]
    print_lineage(made["gpt"], True, console(10_000))
    kinds = {node["kind"] for node in json.loads(capsys.readouterr().out)["nodes"]}
    assert kinds == {"tokenizer", "tokens", "model", "export", "classifier"}


def test_a_tokenizer_that_no_configuration_names_is_found_by_its_hash(tmp_path):
    made = family(tmp_path / "runs")
    config = yaml.safe_load((made["gpt"] / "config.yaml").read_text())
    (made["gpt"] / "config.yaml").write_text(yaml.safe_dump({**config, "tokenizer": None}))
    rows = [json.loads(line) for line in (made["gpt"] / "artifacts.jsonl").read_text().splitlines()]
    own = json.loads((made["tokenizer"] / "artifacts.jsonl").read_text())
    rows[0]["files"]["tokenizer.model"] = own["files"]["tokenizer.model"]
    (made["gpt"] / "artifacts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    nodes = graph([made[name] for name in ("tokenizer", "gpt")])
    assert chain(nodes, made["gpt"])[0].path == made["tokenizer"]


def test_a_parent_that_was_trained_again_is_marked(tmp_path, capsys):
    made = family(tmp_path / "runs")
    print_lineage(made["judge"], False, console(10_000))
    assert "changed since" not in capsys.readouterr().out
    flip(made["gpt"] / "model" / "model.safetensors")
    print_lineage(made["judge"], False, console(10_000))
    assert "gpt has changed since" in capsys.readouterr().out


def test_verify_reads_the_token_store_and_accepts_that_it_is_gone(tmp_path, capsys):
    made = family(tmp_path / "runs")
    print_verification([made["gpt"]], False, console())
    flip(made["tokens"] / "tokens.bin")
    with pytest.raises(CheckpointError, match=r"tokens\.bin has changed"):
        print_verification([made["gpt"]], False, console())
    for file in made["tokens"].iterdir():
        file.unlink()
    capsys.readouterr()
    print_verification([made["gpt"]], False, console())
    assert "gone" in capsys.readouterr().out


def test_rm_deletes_runs_but_no_live_one_and_asks(tmp_path, capsys, monkeypatch):
    made = family(tmp_path / "runs")
    with RunDirectory(made["judge"]), pytest.raises(ConfigError, match=f"alive.*process {os.getpid()}"):
        remove_runs([made["gpt"], made["judge"]], yes=True)
    lock(made["judge"], 1, "another-host")
    with pytest.raises(ConfigError, match=r"another-host.*remove .*lock\.json"):
        remove_runs([made["gpt"], made["judge"]], yes=True)
    assert made["gpt"].is_dir() and made["judge"].is_dir()
    (made["judge"] / "lock.json").unlink()
    monkeypatch.setattr("typer.confirm", lambda question: False)
    with pytest.raises(ConfigError, match="nothing was deleted"):
        remove_runs([made["gpt"]], yes=False)
    assert made["gpt"].is_dir() and "made from it: judge" in capsys.readouterr().out
    remove_runs([made["gpt"], made["gpt"]], yes=True)
    assert not made["gpt"].exists() and made["judge"].is_dir() and made["tokens"].is_dir()


def test_rm_refuses_a_link_and_what_is_no_run(tmp_path):
    run = make_run(tmp_path / "runs" / "gpt")
    (tmp_path / "runs" / "latest").symlink_to(run)
    with pytest.raises(ConfigError, match="symbolic link"):
        remove_runs([tmp_path / "runs" / "latest"], yes=True)
    (tmp_path / "letters").mkdir()
    with pytest.raises(ConfigError, match="no run there"):
        find_run(tmp_path / "letters", tmp_path / "runs")
    with pytest.raises(ConfigError, match="did you mean gpt"):
        find_run(Path("gpt2"), tmp_path / "runs")
    assert find_run(Path("gpt"), tmp_path / "runs") == run and run.is_dir()


def test_a_curve_goes_down_from_left_to_right():
    first, second = draw([1, 2, 3, 4], [3.0, 2.0, 1.0, 0.0], 4, 2, (1, 4))
    # Braille has no dot in U+2800.
    assert first[0] != "\u2800" and first[-1] == "\u2800" and second[0] == "\u2800" and second[-1] != "\u2800"
    assert len(first) == len(second) == 4
    assert draw([1], [5.0], 3, 1, (1, 1)) != draw([2], [5.0], 3, 1, (1, 2))


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_view_fits_the_terminal_and_shows_rates(tmp_path, width):
    run = make_run(tmp_path / "gpt", **{"val/bpb": 1.25})
    lines = [text.plain for text in view(run, width).renderables]
    text = "\n".join(lines)
    assert "step 12, 1.00k tokens/s, MFU 50%, 0:12 of training, 1 steps/s" in text
    assert "1.25" in text and "val loss" in text
    assert max(len(line) for line in lines if any("\u2800" < letter <= "\u28ff" for letter in line)) <= max(width, 30)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("{}")
    assert "no step has been recorded yet" in view(tmp_path / "new", width).renderables[-1].plain


@pytest.mark.slow
def test_the_commands_run_from_the_command_line(tmp_path):
    make_run(tmp_path / "runs" / "gpt")
    flip(tmp_path / "runs" / "gpt" / "model" / "model.safetensors")
    for arguments, code, shown in (
        (["runs"], 0, "finished"),
        (["runs", "verify"], 4, "damaged"),
        (["runs", "rm", "gpt", "--yes"], 0, "deleted runs/gpt"),
        (["runs"], 2, "no runs here yet"),
    ):
        command = [sys.executable, "-m", "mini_llm", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code and shown in done.stdout + done.stderr, (arguments, done)


def documented() -> list[str]:
    """The commands of docs/runs.md, without their comments; `make` runs two of them."""
    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    return re.findall(r"^python -m mini_llm ([^#\n]+?) *(?:#.*)?$", text, re.MULTILINE)


@pytest.mark.slow
def test_every_documented_command_runs(tmp_path, monkeypatch, capsys):
    for name in ("gpt", "gpt-2", "gpt-3", "old-gpt", "old-mlm"):
        make_run(tmp_path / "runs" / name)
    make_run(tmp_path / "runs" / "gpt-classifier", {"model": "runs/gpt", "data": {"path": "stars.csv"}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("typer.confirm", lambda question: True)
    commands = documented()
    assert len(commands) >= 10
    for command in commands:
        with pytest.raises(SystemExit) as end:
            run_app(app, "mini_llm", command.split())
        assert not end.value.code, (command, capsys.readouterr())
    assert not Path("runs/old-gpt").exists() and Path("runs/compare.html").is_file()
