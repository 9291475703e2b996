"""Sharded checkpoints of two processes resume exactly at any ZeRO stage, rank count and kind of checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from chaos.equivalence.ranks import LAYOUTS, advance, start
from mini_llm.engine.checkpoint.format import find_damage, latest_checkpoint, load_checkpoint, step_path
from mini_llm.engine.checkpoint.shard_files import ShardReader
from mini_llm.engine.checkpoint.sharded_saver import ShardedSaver
from mini_llm.engine.errors import CheckpointError
from mini_llm.model import load_model
from tests.checkpoint.sharded_worker import RING, load, save

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which one process saved one/ and then two processes ran sharded_worker.py."""
    folder = tmp_path_factory.mktemp("sharded")
    training = start(None, "muon", "fp32")
    advance(training, range(4))
    save(ShardedSaver, folder / "one", training, {"step": 4})
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [sys.executable, "-m", *launcher, "tests.checkpoint.sharded_worker", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    yield folder
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def seen(folder) -> dict:
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_layout_resumes_bit_identically(seen, layout, optimizer):
    key = f"{layout} -> {layout} {optimizer}"
    assert seen[f"{key} loaded"] == 0
    assert seen[key] == seen[f"{layout} {optimizer}"]
    assert seen[f"{key} at the end"] == 0


PAIRS = [(i, j, "muon") for i in LAYOUTS for j in LAYOUTS if i != j] + [(i, j, "adamw") for i, j in RING.items()]


@pytest.mark.parametrize(("source", "target", "optimizer"), PAIRS)
def test_another_stage_loads_the_same_numbers(seen, source, target, optimizer):
    """Weights and optimizer state are equal to the bit; the next loss agrees within rounding."""
    key = f"{source} -> {target} {optimizer}"
    assert seen[f"{key} loaded"] == 0
    assert seen[key][0] == pytest.approx(seen[f"{source} {optimizer}"][0], rel=1e-5)


def test_a_run_moves_from_one_process_to_two_and_back(folder, seen):
    whole = start(None, "muon", "fp32")
    expected = advance(whole, range(12))
    assert seen["two"] == [pytest.approx(pair, rel=1e-5) for pair in expected[4:8]]
    training = start(None, "muon", "fp32")
    load(folder / "two", training, 8)
    assert advance(training, range(8, 12)) == [pytest.approx(pair, rel=1e-5) for pair in expected[8:]]


@pytest.mark.parametrize("stage", ["ZeRO 1", "ZeRO 3"])
def test_deepspeed_bf16_resumes_bit_identically(seen, stage):
    on, resumed = seen["16 bit"][stage]
    assert on == resumed


def test_full_and_sharded_checkpoints_follow_each_other(folder, seen):
    assert seen["full after sharded"] == seen["sharded after full"] == 0
    assert seen["names"] == ["best-00000004", "step-00000008", "step-00000012"]
    # The exported weights were sharded, the checkpoint after them is full, and no step was taken in between.
    exported = load_file(folder / "mixed/model/model.safetensors")
    full = load_file(folder / "mixed/checkpoints/step-00000008/model/model.safetensors")
    assert exported.keys() == full.keys() and all((exported[k] == full[k]).all() for k in full)


def test_no_rank_holds_more_than_its_shards(seen):
    """AdamW under ZeRO 3 has 12 bytes per parameter, half on each of two ranks; export reads one tensor at a time."""
    found = seen["memory"]
    part, all_of_it = found["all"] / 2, found["all"]
    # A full checkpoint is held by rank 0 and read by both: this checks that the measurement works.
    assert found["Saver saves"][0] >= all_of_it and min(found["Saver loads"]) >= part
    assert max(found["ShardedSaver saves"]) <= 1.02 * part + found["largest"]
    assert max(found["ShardedSaver loads"]) <= 1.02 * part + found["largest"]
    assert found["exports"] <= 8000 + 3 * found["largest"] < found["weights"]


def test_a_full_disk_on_one_rank_fails_the_save_on_all(seen):
    found = seen["full"]
    assert len(found["errors"]) == 2
    assert all("step 4 could not be saved (rank 1: No space left" in text for text in found["errors"])
    assert found["left"] == [] and found["next"] == ["step-00000008"]


def test_the_state_of_another_optimizer_is_an_error(seen):
    assert "exp_avg" in seen["refused"] and "momentum_buffer" in seen["refused"] and "optim.name" in seen["refused"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_damage_to_the_file_of_one_rank_is_found_and_the_previous_checkpoint_is_used(folder, tmp_path, damage):
    root = shutil.copytree(folder / "mixed", tmp_path / "run")
    newest = step_path(root, 12)
    path = newest / "shards" / "rank-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    match damage:
        case "flip":
            data[-5] ^= 1
            path.write_bytes(data)
        case "truncate":
            path.write_bytes(data[:-1])
        case "remove":
            path.unlink()
        case "add":
            path = path.with_name("rank-00002-of-00003.safetensors")
            path.write_bytes(data)
    assert path.name in find_damage(newest)
    assert latest_checkpoint(root, lambda message: None) == step_path(root, 8)


def test_missing_ranges_are_named(folder, tmp_path):
    """A manifest that does not list a file cannot show that it is missing."""
    directory = shutil.copytree(step_path(folder / "muon" / "ZeRO 3", 4), tmp_path / "step-00000004")
    (directory / "shards" / "rank-00001-of-00002.safetensors").unlink()
    training = start(None, "muon", "fp32")
    with pytest.raises(CheckpointError, match=r"shards: no file holds element \d+ of "):
        load_checkpoint(directory, training.model, training.optimizer, training.accelerator)


def test_a_foreign_file_among_the_shards_is_named(folder, tmp_path):
    directory = shutil.copytree(step_path(folder / "one", 4), tmp_path / "step-00000004")
    (directory / "shards" / "rank-00001-of-00002.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"rank-00001-of-00002.safetensors: unreadable"), ShardReader(directory):
        pass


def test_shards_hold_every_element_once(folder):
    """Two files with half the elements each; read together they equal the full model."""
    files = sorted((step_path(folder / "mixed", 12) / "shards").iterdir())
    numbers = [sum(tensor.numel() for tensor in load_file(file).values()) for file in files]
    with ShardReader(step_path(folder / "mixed", 12)) as reader:
        assert sum(numbers) == sum(shape.numel() for shape in reader.shapes.values())
        weights = load_model(step_path(folder / "mixed", 8) / "model").state_dict()
        assert all((reader.read_tensor(key) == weights[key]).all() for key in reader.shapes if "/" not in key)
    assert len(numbers) == 2 and max(numbers) < 0.6 * sum(numbers)
