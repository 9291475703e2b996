"""An interrupted `predict --output` continues: no row missing, none twice, the same bytes as without interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finetune.predict import predict
from mini_llm.engine.errors import ConfigError, DataError
from mini_llm.engine.run import partial
from mini_llm.model import ModelConfig, SequenceClassifier, save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.models import randomized

ROOT = Path(__file__).parents[2]
ROWS = 100


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier") / "model"
    sizes = {"vocab_size": 384, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = ModelConfig(**sizes, **tokens, causal=True, id2label={0: "no", 1: "yes"})
    save_model(randomized(SequenceClassifier(config)), directory)
    save_tokenizer(tiny_tokenizer, directory, "causal")
    return directory


@pytest.fixture(autouse=True)
def every_state_is_written(monkeypatch):
    monkeypatch.setattr(partial, "STATE_INTERVAL", 0)


def table(path, bad=None, rows=ROWS):
    """A CSV of texts of many lengths, some with line ends; the row `bad` has no text."""
    texts = [f'"def f{i}(x):\n  {"return x " * (i % 5)}"' if i != bad else "" for i in range(1, rows + 1)]
    path.write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts, 1)))
    return path


def label(model, source, output, **options):
    return predict(model, str(source), output=output, batch_size=1, **options)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["csv", "jsonl"])
def stopped(request, model, tmp_path):
    """An output that stopped at row 70, in the third list of 16 rows * 2, its input repaired, and the wanted bytes."""
    source, output = tmp_path / "new.csv", tmp_path / f"out.{request.param}"
    with pytest.raises(DataError, match="row 70"):
        label(model, table(source, bad=70), output, top_k=1)
    table(source)
    whole = tmp_path / "whole" / output.name
    assert label(model, source, whole, top_k=1) == ROWS
    assert not output.exists()
    return source, output, whole.read_bytes()


def test_a_stopped_command_continues(model, stopped, capsys):
    source, output, wanted = stopped
    written = json.loads(Path(f"{output}.partial.json").read_text())["latest"]["row"]
    assert written == 69
    assert label(model, source, output, top_k=1) == ROWS
    assert f"after row {written}" in capsys.readouterr().err
    assert output.read_bytes() == wanted
    assert left(output.parent) == ["new.csv", output.name, "whole"]


def test_rows_after_the_last_state_are_cut(model, stopped):
    source, output, wanted = stopped
    with open(f"{output}.partial", "ab") as file:
        file.write(b"70,text\n" * 5000 + b"half of a ro")
    label(model, source, output, top_k=1)
    assert output.read_bytes() == wanted


@pytest.mark.parametrize("damage", ["shorter", "changed", "no file", "no state", "garbage", "other types"])
def test_what_a_power_cut_leaves_is_noticed(model, stopped, damage):
    source, output, wanted = stopped
    file, state = Path(f"{output}.partial"), Path(f"{output}.partial.json")
    data = file.read_bytes()
    if damage == "shorter":
        file.write_bytes(data[:-20])
    elif damage == "changed":
        file.write_bytes(data[:-20] + bytes(20))
    elif damage == "no file":
        file.unlink()
    elif damage == "no state":
        state.unlink()
    elif damage == "garbage":
        state.write_text('{"latest": ')
    else:
        tree = json.loads(state.read_text())
        state.write_text(json.dumps({**tree, "latest": {"row": "x"}, "durable": {"bytes": None, "row": [1]}}))
    label(model, source, output, top_k=1)
    assert output.read_bytes() == wanted


def test_a_durable_state_is_used_when_later_rows_are_lost(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(partial, "SYNC_INTERVAL", 0)
    source, output = table(tmp_path / "new.csv", bad=70), tmp_path / "out.jsonl"
    with pytest.raises(DataError):
        label(model, source, output)
    state = Path(f"{output}.partial.json")
    tree = json.loads(state.read_text())
    assert tree["durable"]["row"] > 0
    tree["latest"]["bytes"] += 1000
    state.write_text(json.dumps(tree))
    assert label(model, table(source), output) == ROWS
    assert f"after row {tree['durable']['row']}" in capsys.readouterr().err
    assert [json.loads(line)["row"] for line in output.read_text().splitlines()] == list(range(1, ROWS + 1))


def test_another_model_option_or_input_is_noticed(model, stopped, tmp_path):
    source, output, wanted = stopped
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "README.md").write_text("changed")
    for directory, file, options, message in (
        (other, source, {"top_k": 1}, "other model"),
        (model, source, {"top_k": 2}, "other options"),
        (model, source, {"top_k": 1, "min_probability": 0.5}, "other options"),
        (model, shutil.copy(source, tmp_path / "copy.csv"), {"top_k": 1}, "other input"),
    ):
        with pytest.raises(ConfigError, match=message):
            label(directory, file, output, **options)
    before = source.read_text()
    for changed in (before.replace("def f3(", "def g3("), "id,text\n1,a\n", "id,text\n"):
        source.write_text(changed)
        with pytest.raises(DataError, match="its first 69 rows are not those"):
            label(model, source, output, top_k=1)
    # What follows the rows that are done may change.
    source.write_text(before + "101,more\n")
    assert label(model, source, output, top_k=1) == ROWS + 1
    assert output.read_bytes().startswith(wanted)


def test_rows_without_text_are_neither_lost_nor_repeated(model, tmp_path):
    source, output, whole = tmp_path / "new.jsonl", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    rows = [json.dumps({"text": None if i % 3 == 0 else f"text {i}"}) for i in range(ROWS)]
    for mode in ("skip", "empty"):
        source.write_text("\n".join([*rows[:66], '{"text": [1]}', *rows[67:]]))
        with pytest.raises(DataError, match="row 67"):
            label(model, source, output, on_null=mode)
        source.write_text("\n".join(rows))
        count = label(model, source, output, on_null=mode)
        assert count == label(model, source, whole, on_null=mode) == (66 if mode == "skip" else ROWS)
        assert output.read_bytes() == whole.read_bytes()


def test_two_commands_do_not_write_one_file(model, stopped):
    source, output, wanted = stopped
    with (
        partial.PartialOutput(output.with_name("other.csv"), {}, partial.State),
        pytest.raises(ConfigError, match="another command is writing"),
        partial.PartialOutput(output.with_name("other.csv"), {}, partial.State),
    ):
        pass
    label(model, source, output, top_k=1)
    assert output.read_bytes() == wanted


def test_a_symbolic_link_stays_one(model, tmp_path):
    (tmp_path / "target.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    label(model, table(tmp_path / "new.csv"), tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "target.csv").read_text().startswith("row,id,text")


def test_an_output_that_is_a_pipe_is_written_directly(model, tmp_path):
    source, pipe = table(tmp_path / "new.csv"), tmp_path / "pipe"
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.extend(pipe.read_text().splitlines()), daemon=True)
    reader.start()
    assert label(model, source, pipe) == ROWS
    reader.join(timeout=5)
    assert [json.loads(line)["row"] for line in found] == list(range(1, ROWS + 1))
    assert pipe.is_fifo() and left(tmp_path) == ["new.csv", "pipe"]


def test_the_last_state_is_written_when_the_command_stops(model, tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "STATE_INTERVAL", 1000)
    with pytest.raises(DataError):
        label(model, table(tmp_path / "new.csv", bad=70), tmp_path / "out.csv")
    assert json.loads((tmp_path / "out.csv.partial.json").read_text())["latest"]["row"] == 69


def test_an_empty_input_gives_an_empty_output(model, tmp_path):
    (tmp_path / "new.txt").write_text("")
    assert label(model, tmp_path / "new.txt", tmp_path / "out.csv") == 0
    assert (tmp_path / "out.csv").read_text() == "row,label,probability,p(no),p(yes)\n"
    assert label(model, tmp_path / "new.txt", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def command(model, source, output):
    names = [str(model), str(source), "--output", str(output), "--batch-size", "1"]
    return [sys.executable, "-m", "finetune", "predict", *names]


@pytest.mark.slow
def test_killed_again_and_again(model, tmp_path):
    """kill -9 at five moments; each start continues, and the file is the one of an undisturbed command."""
    source, output, whole = table(tmp_path / "new.csv", rows=2500), tmp_path / "out.csv", tmp_path / "whole.csv"
    label(model, source, whole)
    done = [0]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(5):
        child = subprocess.Popen(command(model, source, output), stderr=subprocess.DEVNULL, cwd=ROOT, env=environment)
        state = Path(f"{output}.partial.json")
        while child.poll() is None and (
            not state.exists() or json.loads(state.read_text())["latest"]["row"] <= done[-1]
        ):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        if child.wait() == 0:
            break
        done.append(json.loads(state.read_text())["latest"]["row"])
    assert len(done) > 2 and done == sorted(set(done)) and not output.exists()
    subprocess.run(command(model, source, output), check=True, cwd=ROOT, env=environment)
    assert output.read_bytes() == whole.read_bytes()


WATCHED = """
import atexit, os, runpy
from pathlib import Path
from tests.engine.peak_memory import peak_bytes

atexit.register(lambda: Path(os.environ["PEAK_FILE"]).write_text(str(peak_bytes())))
runpy.run_module("finetune", run_name="__main__")
"""


def peak_memory(model, source, output):
    """Peak resident MB of a predict command."""
    peak = output.with_suffix(".peak")
    arguments = [*command(model, source, output)[3:-1], "256"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PEAK_FILE": str(peak)}
    subprocess.run([sys.executable, "-c", WATCHED, *arguments], check=True, cwd=ROOT, env=environment)
    return int(peak.read_text()) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_memory_does_not_grow_with_the_input(model, tmp_path, suffix):
    """Ten times the rows (120 MB) take at most 60 MB more: buffers and caches that fill once."""
    peaks = []
    for rows in (1500, 15_000):
        source = tmp_path / f"new-{rows}.{suffix}"
        with source.open("w") as file:
            file.write("text,note\n" if suffix == "csv" else "")
            for i in range(rows):
                row = {"text": f"def f{i}(x)", "note": f"{i} " * 1400}
                file.write(f"{row['text']},{row['note']}\n" if suffix == "csv" else json.dumps(row) + "\n")
        peaks.append(peak_memory(model, source, tmp_path / f"out.{suffix}"))
    assert peaks[1] < peaks[0] + 60, peaks
    assert peaks[1] < 1500
