"""A case that ends without a figure does not end a benchmark: its row says how it ended."""

import json
import subprocess
import sys

import pytest
import typer.testing

from benchmarks import decoding, startup, training
from benchmarks.measure import CaseError, Comparison, NoFigures, interleave, output_of, publish

KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
FAILED = "print(1); raise SystemExit('no such model')"
ENDINGS = {KILLED: "ended by SIGILL", FAILED: "exit code 1: no such model"}


@pytest.mark.parametrize("program", ENDINGS)
def test_the_others_go_on_and_the_row_says_how_it_ended(program, tmp_path, capsys):
    turns = []
    cases = {
        "ours": lambda: 4.0,
        "peer": lambda: turns.append(1) or float(output_of([sys.executable, "-c", program])),
        "another": lambda: float(output_of([sys.executable, "-c", "print(2)"])),
    }
    figures = interleave(cases, repeats=3)
    assert len(turns) == 1
    comparison = Comparison("speed", "tokens/s", figures, goals={"peer": 2.0, "another": 3.0})
    assert comparison.ratios == {"another": 2.0} and comparison.missed() == ["another"]
    publish([comparison], "test", tmp_path)
    assert ENDINGS[program] in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "test.json").read_text())["comparisons"]
    assert row["failures"] == {"peer": ENDINGS[program]} and row["figures"]["peer"] == []
    assert Comparison(**{key: row[key] for key in Comparison.__dataclass_fields__}).failures == comparison.failures


def test_ours_may_fail_too():
    comparison = Comparison("speed", "s", {"ours": NoFigures("exit code 3"), "peer": [1.0]}, goals={"peer": 1.0})
    assert comparison.ratios == {} and comparison.failures == {"ours": "exit code 3"}


def test_decoding_goes_on_without_a_peer_that_is_killed(monkeypatch, tmp_path):
    def ended(command, **options):
        if "llama.cpp" in command:
            return output_of([sys.executable, "-c", KILLED])
        return json.dumps({"tokens_per_second": 5.0, "ids": [1, 2]})

    monkeypatch.setattr(decoding, "output_of", ended)
    monkeypatch.setattr(decoding, "export_gguf", lambda *_: None)
    for comparison in decoding.compare("110 M", tmp_path, 10, "python", 2, 8, 1, 1e9):
        (peer,) = comparison.failures
        assert peer.startswith("llama.cpp") and comparison.failures[peer] == "ended by SIGILL"
        assert comparison.medians["transformers bf16"] == 5.0


def test_training_goes_on_without_a_peer_that_is_killed(monkeypatch, capsys):
    """The peer dies before its first step, and another one after it."""
    answer = json.dumps({"wall": 1.0, "cpu": 1.0, "first": 2.0, "peak_mb": 3.0})
    alive = f"import sys\nfor _ in sys.stdin: print({answer!r}, flush=True)"
    dies = f"input(); print({answer!r}, flush=True); {KILLED}"
    programs = {"ours": alive, "transformers": KILLED, "nanogpt": dies}
    real = subprocess.Popen

    def start(command, **options):
        return real([sys.executable, "-c", programs[json.loads(command[-1])["kind"]]], **options)

    monkeypatch.setattr(training.subprocess, "Popen", start)
    monkeypatch.setenv("NANOGPT", "/nowhere")
    monkeypatch.setenv("NANOCHAT", "")  # as `make` exports it
    result = typer.testing.CliRunner().invoke(training.app, ["main", "--rounds", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.count("ended by SIGILL") >= 2
    assert "ours, AdamW: first step after 2.0 s" in result.output


def test_startup_says_how_a_program_ended(tmp_path):
    with pytest.raises(CaseError, match="ended by SIGILL, without printing"):
        startup.until(tmp_path, ["-c", KILLED], b"FIRST")
