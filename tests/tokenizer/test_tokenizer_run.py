"""A tokenizer run: its files, reuse, refusals, kills at any moment, the command line and the picture."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import tokenizer.train as train_module
from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer
from tests.documents import WORDS
from tokenizer.report import choose_sentence, draw, measure, token_rows
from tokenizer.train import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a corpus of 30 documents."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    rng = random.Random(0)
    (tmp_path / "texts").mkdir()
    for number in range(30):
        text = "\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(20)) + f"\ncaf\u00e9 number {number}\n"
        (tmp_path / "texts" / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def make_config(**changes) -> TokenizerConfig:
    settings = {"corpus": {"sources": "texts", "validation_fraction": 0.2, "split": "hash"}, "vocab_size": 330}
    return TokenizerConfig.model_validate(settings | changes)


def quiet(line: str) -> None:
    pass


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.name.startswith("tokenizer")}


def test_a_run_leaves_a_complete_directory(place):
    said = []
    trained = train_tokenizer(make_config(), place / "runs" / "t", said.append)
    directory = place / "runs" / "t"
    names = {path.name for path in directory.iterdir()}
    assert {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "summary.json", "config.yaml"} <= names
    assert not [name for name in names if "tmp" in name or "staging" in name]
    assert load_tokenizer(directory).sha256 == trained.sha256 and trained.vocab_size == 330
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["tokenizer_sha256"] == trained.sha256 and summary["job_type"] == "tokenizer"
    assert summary["bytes_per_token"] > 2 > summary["tokens_per_word"] > 0
    assert 0.99 < summary["coverage"] <= 1 and 0 <= summary["byte_fallback"] < 0.1
    assert summary["byte_baseline_tokens_per_word"] > summary["tokens_per_word"]
    pieces = json.loads((directory / "tables" / "pieces.json").read_text())
    assert pieces["columns"] == ["piece", "id", "kind"]
    assert trained.decode([row[1] for row in pieces["rows"]]) == summary["sentence"]
    artifact = json.loads((directory / "artifacts.jsonl").read_text())
    assert artifact["kind"] == "tokenizer" and artifact["sha256"] == trained.sha256
    assert any("330 tokens" in line for line in said) and any("decode unchanged" in line for line in said)


def test_the_same_command_again_changes_nothing_and_says_so(place):
    directory = place / "runs" / "t"
    train_tokenizer(make_config(), directory, quiet)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    said = []
    with RunDirectory(directory):  # other ranks and runs read while one holds it
        before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
        train_tokenizer(make_config(run="t"), directory, said.append)
        train_tokenizer(make_config(vocab_size=None), directory, said.append)
        assert before == {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    assert len(said) == 2 and "Nothing to do" in said[0]


def test_another_configuration_in_the_same_directory_is_refused_with_its_keys(place):
    directory = place / "runs" / "t"
    train_tokenizer(make_config(), directory, quiet)
    before = contents(directory)
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(make_config(vocab_size=340, seed=3), directory, quiet)
    for part in ("vocab_size: 330 -> 340", "seed: 0 -> 3", "RUN=", f"delete {directory}"):
        assert part in str(caught.value)
    assert contents(directory) == before


def test_a_changed_corpus_is_refused_with_the_alternatives(place):
    directory = place / "runs" / "t"
    train_tokenizer(make_config(), directory, quiet)
    (place / "texts" / "05.txt").write_text("the text is another one\n")
    with pytest.raises(ConfigError, match=r"corpus has changed.*RUN="):
        train_tokenizer(make_config(), directory, quiet)


def test_default_directory_is_named_after_the_corpus():
    assert TokenizerConfig().directory == Path("runs/tokenizer")
    assert make_config().directory == Path("runs/tokenizer-texts")
    assert make_config(run="mine").directory == Path("runs/mine")
    for name in ("../mine", "a/b", "", "."):
        with pytest.raises(ValueError, match="run"):
            make_config(run=name)


def test_a_failing_gate_leaves_no_tokenizer(place, monkeypatch):
    def refuse(*_):
        raise CheckpointError("does not round-trip")

    with monkeypatch.context() as broken, pytest.raises(CheckpointError):
        broken.setattr(train_module, "check", refuse)
        train_tokenizer(make_config(), place / "runs" / "t", quiet)
    assert not (place / "runs" / "t").exists()
    train_tokenizer(make_config(vocab_size=340), place / "runs" / "t", quiet)


def test_a_run_that_was_stopped_after_its_metrics_records_them_once(place, monkeypatch):
    config = make_config()
    train_tokenizer(config, place / "whole", quiet)
    with monkeypatch.context() as patch:
        patch.setattr(train_module.Tracker, "summary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_tokenizer(config, place / "stopped", quiet)
    train_tokenizer(config, place / "stopped", quiet)
    whole, stopped = ((place / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped"))
    assert stopped == whole and whole.count(b"\n") == 1


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_damaged_summary_is_named(content, place, capsys):
    config = make_config()
    train_tokenizer(config, place / "t", quiet)
    (place / "t" / "summary.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"summary\.json: does not say"):
        train_tokenizer(config, place / "t", quiet)


def run_and_kill(config: TokenizerConfig, directory: Path, event: int) -> bool:
    """Train in a child that SIGKILLs itself before its `event`-th rename; whether it was killed."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(name: str, _: tuple) -> None:
            nonlocal seen
            seen += name == "os.rename"
            if name == "os.rename" and seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            train_tokenizer(config, directory, quiet)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_nothing_or_everything(place):
    config = make_config()
    train_tokenizer(config, place / "whole", quiet)
    assert train_module.is_complete(place / "whole")
    expected = contents(place / "whole")
    event, torn = 1, []
    while run_and_kill(config, place / f"killed-{event}", event):
        directory = place / f"killed-{event}"
        if (directory / "tokenizer.model").exists():
            assert train_module.is_complete(directory) and contents(directory) == expected
        else:
            torn.append(directory)
        event += 1
    assert len(torn) > 8, "the child has to be killed at every step"
    for directory in (torn[0], torn[-2], torn[-1]):
        train_tokenizer(config, directory, quiet)
        assert contents(directory) == expected, f"the run after {directory.name}"


def command(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = (
        os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", "PYTHONIOENCODING": "utf-8"} | variables
    )
    return subprocess.run(
        [sys.executable, "-m", "tokenizer", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_command_line(place):
    (place / "t.yaml").write_text("vocab_size: 340\ncorpus: {split: hash, validation_fraction: 0.2}\n")
    done = command("t.yaml", "vocab_size=330", "--data", "texts", "--run", "mine", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "bytes per token" in done.stdout and "plain bytes" in done.stdout
    picture = next(line for line in done.stdout.splitlines() if line.startswith("|"))
    summary = json.loads((place / "runs" / "mine" / "summary.json").read_text())
    assert picture.replace("|", "").replace("\u00b7", " ") == summary["sentence"]
    assert "runs/mine" in done.stdout and "python -m pretrain --data texts tokenizer=runs/mine" in done.stdout
    assert Tokenizer.load(place / "runs" / "mine").vocab_size == 330
    again = command("t.yaml", "vocab_size=330", "--data", "texts", "--run", "mine", cwd=place)
    assert again.returncode == 0 and "Nothing to do" in again.stderr and again.stdout == done.stdout


@pytest.mark.slow
def test_command_line_errors_have_exit_codes_and_no_traceback(place):
    for arguments, code, message in [
        (["vocab_sise=4096"], 2, "did you mean vocab_size?"),
        (["--data", "texts", "corpus.split=hash", "corpus.validation_fraction=0.2", "vocab_size=99999"], 2, "at most"),
        (["--data", "nowhere.txt"], 3, "nowhere.txt"),
    ]:
        done = command(*arguments, cwd=place)
        assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_several_processes_train_once(place):
    done = command("--data", "texts", cwd=place, RANK="1")
    assert (done.returncode, done.stdout) == (0, "") and not (place / "runs").exists()


def test_help_imports_nothing_heavy(place):
    code = (
        "import sys; from tokenizer.__main__ import app, run_app\n"
        "try: run_app(app, 'tokenizer', ['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'sentencepiece', 'transformers', 'tokenizers', 'wandb', 'datasets', 'numpy', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "python -m tokenizer --data input.txt" in done.stdout and "Exit codes" in done.stdout


def test_picture_in_a_terminal_and_without(place):
    trained = train_tokenizer(make_config(), place / "runs" / "t", quiet)
    rows = token_rows(trained, "the \u6f22\tand\nof [b]it")
    assert {row[2] for row in rows} == {"piece", "byte"}
    plain = Console(file=io.StringIO(), width=60)
    draw(rows, plain)
    text = plain.file.getvalue()
    assert "|the|" in text and "<0xE6>|<0xBC>|<0xA2>" in text
    terminal = Console(file=io.StringIO(), width=40, force_terminal=True, color_system="standard")
    draw(rows, terminal)
    coloured = terminal.file.getvalue()
    assert "\x1b[" in coloured and str(rows[0][1]) in coloured
    latin = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=60)
    draw(token_rows(trained, "the of\nand"), latin)


def test_report_of_known_text(place):
    trained = train_tokenizer(make_config(), place / "runs" / "t", quiet)
    text = "the of \U0001f600"
    figures = measure(trained, [text, text])
    tokens = len(trained.encode(text))
    assert figures["heldout_bytes"] == 2 * 11
    assert figures["bytes_per_token"] == pytest.approx(11 / tokens)
    assert figures["tokens_per_word"] == pytest.approx(tokens / 3)
    assert figures["byte_baseline_tokens_per_word"] == pytest.approx(11 / 3)
    assert figures["coverage"] == pytest.approx(7 / 8), "all but the emoji"
    assert figures["byte_fallback"] == pytest.approx(4 / tokens)
    assert choose_sentence(
        ["short\n", "  a line of text that has more than eight words in it, and ends here\n"]
    ).startswith("a")
    assert choose_sentence([]) == ""
