"""Sharded checkpoints: what two processes save without gathering goes on at any stage, rank count and kind, exactly."""

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
from mini_llm.engine.checkpoint.shard_files import Shards
from mini_llm.engine.checkpoint.sharded_saver import ShardedSaver
from mini_llm.engine.errors import CheckpointError
from mini_llm.model import load_model
from tests.checkpoint.sharded_worker import RING, load, save

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where one process has saved one/, and then two all that tests/checkpoint/sharded_worker.py does."""
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
def test_the_same_layout_goes_on_to_the_bit(seen, layout, optimizer):
    key = f"{layout} -> {layout} {optimizer}"
    assert seen[f"{key} loaded"] == 0
    assert seen[key] == seen[f"{layout} {optimizer}"]
    assert seen[f"{key} at the end"] == 0


PAIRS = [(i, j, "muon") for i in LAYOUTS for j in LAYOUTS if i != j] + [(i, j, "adamw") for i, j in RING.items()]


@pytest.mark.parametrize(("source", "target", "optimizer"), PAIRS)
def test_another_stage_has_the_same_numbers(seen, source, target, optimizer):
    """Weights and optimizer state to the bit, in the working copies too: the next loss is within rounding."""
    key = f"{source} -> {target} {optimizer}"
    assert seen[f"{key} loaded"] == 0
    assert seen[key][0] == pytest.approx(seen[f"{source} {optimizer}"][0], rel=1e-5)


def test_one_process_then_two_then_one(folder, seen):
    whole = start(None, "muon", "fp32")
    expected = advance(whole, range(12))
    assert seen["two"] == [pytest.approx(pair, rel=1e-5) for pair in expected[4:8]]
    training = start(None, "muon", "fp32")
    load(folder / "two", training, 8)
    assert advance(training, range(8, 12)) == [pytest.approx(pair, rel=1e-5) for pair in expected[8:]]


@pytest.mark.parametrize("stage", ["ZeRO 1", "ZeRO 3"])
def test_deepspeeds_own_bf16_goes_on_to_the_bit(seen, stage):
    on, resumed = seen["16 bit"][stage]
    assert on == resumed


def test_both_kinds_follow_one_another(folder, seen):
    assert seen["gathered after sharded"] == seen["sharded after gathered"] == 0
    assert seen["names"] == ["best-00000004", "step-00000008", "step-00000012"]
    # The weights to publish are sharded, the checkpoint after them is gathered, and nothing was learned in between.
    published = load_file(folder / "mixed/model/model.safetensors")
    gathered = load_file(folder / "mixed/checkpoints/step-00000008/model/model.safetensors")
    assert published.keys() == gathered.keys() and all((published[k] == gathered[k]).all() for k in gathered)


def test_no_rank_holds_more_than_its_part(seen):
    """AdamW under ZeRO 3: 12 bytes a parameter, of which each of two ranks has half; a model is read by the tensor."""
    found = seen["memory"]
    part, all_of_it = found["all"] / 2, found["all"]
    # Gathered, rank 0 holds all and both read all: what is counted here is what counts.
    assert found["Saver saves"][0] >= all_of_it and min(found["Saver loads"]) >= part
    assert max(found["ShardedSaver saves"]) <= 1.02 * part + found["largest"]
    assert max(found["ShardedSaver loads"]) <= 1.02 * part + found["largest"]
    assert found["exports"] <= 8000 + 3 * found["largest"] < found["weights"]


def test_a_disk_that_is_full_on_one_machine_fails_the_save_on_all(seen):
    found = seen["full"]
    assert len(found["said"]) == 2
    assert all("step 4 could not be saved (rank 1: No space left" in text for text in found["said"])
    assert found["left"] == [] and found["next"] == ["step-00000008"]


def test_the_state_of_another_optimizer_is_refused(seen):
    assert "exp_avg" in seen["refused"] and "momentum_buffer" in seen["refused"] and "optim.name" in seen["refused"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_damage_of_one_ranks_file_is_found_and_the_checkpoint_before_taken(folder, tmp_path, damage):
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


def test_ranges_that_are_missing_are_named(folder, tmp_path):
    """Where a manifest fits that does not list them."""
    directory = shutil.copytree(step_path(folder / "muon" / "ZeRO 3", 4), tmp_path / "step-00000004")
    (directory / "shards" / "rank-00001-of-00002.safetensors").unlink()
    training = start(None, "muon", "fp32")
    with pytest.raises(CheckpointError, match=r"shards: no file holds element \d+ of "):
        load_checkpoint(directory, training.model, training.optimizer, training.accelerator)


def test_a_foreign_file_among_the_shards_is_named(folder, tmp_path):
    directory = shutil.copytree(step_path(folder / "one", 4), tmp_path / "step-00000004")
    (directory / "shards" / "rank-00001-of-00002.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"rank-00001-of-00002.safetensors: unreadable"), Shards(directory):
        pass


def test_shards_hold_every_number_once(folder):
    """Two files of half the numbers each; read as one process reads them they are the gathered model."""
    files = sorted((step_path(folder / "mixed", 12) / "shards").iterdir())
    numbers = [sum(tensor.numel() for tensor in load_file(file).values()) for file in files]
    with Shards(step_path(folder / "mixed", 12)) as shards:
        assert sum(numbers) == sum(shape.numel() for shape in shards.shapes.values())
        weights = load_model(step_path(folder / "mixed", 8) / "model").state_dict()
        assert all((shards.whole(key) == weights[key]).all() for key in shards.shapes if "/" not in key)
    assert len(numbers) == 2 and max(numbers) < 0.6 * sum(numbers)
