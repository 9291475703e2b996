"""Norms, histograms and samples over a run: right values, the same weights, and the same rows after a resume."""

import json

import numpy as np
import pytest
import torch

from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.settings import TrackingConfig
from mini_llm.engine.tracking.layer_norms import BINS, by_layer, histogram_of, norm_of
from tests import loops

EVERY = TrackingConfig(wandb="disabled", norms_every=2, histograms_every=4)
LAYERS = {"trunk.embed", "trunk.blocks.0", "trunk.blocks.1", "trunk.norm"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "run"
    loops.run(path, loops.config())
    return path


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    path = tmp_path_factory.mktemp("watched") / "run"
    samples = [["text"], [["first"], ["second"]]]
    loops.run(path, loops.config(), tracking=EVERY, samples=lambda model: samples)
    return path


def test_a_watched_run_has_the_same_bytes(plain, watched):
    assert loops.final_files(watched) == loops.final_files(plain)
    assert not (plain / "layers.jsonl").exists()


def test_norms_of_the_layers_add_up_to_that_of_the_gradient(watched):
    rows = read_rows(watched / "layers.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    total = {row["step"]: row["train/grad_norm"] for row in read_rows(watched / "metrics.jsonl") if "train/loss" in row}
    for row in rows:
        gradients = {name: value for name, value in row.items() if name.startswith("grad_norm/")}
        assert {name.partition("/")[2] for name in gradients} >= LAYERS
        assert sum(value**2 for value in gradients.values()) ** 0.5 == pytest.approx(total[row["step"]], rel=1e-5)
        assert all(row[name.replace("grad", "update")] > 0 for name in gradients)


def test_the_update_of_a_step_is_the_difference_of_two_checkpoints(tmp_path):
    from safetensors.torch import load_file

    settings = loops.config(max_steps=6, save_every=1, keep_last=2)
    loops.run(tmp_path / "run", settings, tracking=TrackingConfig(wandb="disabled", norms_every=3))
    files = sorted(tmp_path.glob("run/checkpoints/step-*/model/model.safetensors"))
    before, after = map(load_file, files)
    row = read_rows(tmp_path / "run" / "layers.jsonl")[-1]
    moved = norm_of([after[name] - before[name] for name in after if ".layers.1." in name])
    assert row["step"] == 6 and row["update_norm/trunk.blocks.1"] == pytest.approx(moved, rel=1e-6)


def test_histograms_count_every_element(watched):
    rows = [row for row in read_rows(watched / "layers.jsonl") if "weight/trunk.embed" in row]
    assert [row["step"] for row in rows] == [4, 8]
    elements = sum(parameter.numel() for parameter in by_layer(loops.fresh())["trunk.blocks.0"])
    for name in ("weight/trunk.blocks.0", "gradient/trunk.blocks.0"):
        assert sum(rows[0][name]["counts"]) == elements and len(rows[0][name]["counts"]) == BINS


def test_a_histogram_is_numpy_s_and_needs_finite_values():
    tensors = [torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4.0)]
    counts, low, high = histogram_of(tensors)
    joined = torch.cat([tensor.flatten() for tensor in tensors]).numpy()
    assert counts == np.histogram(joined, BINS, (low, high))[0].tolist()
    assert histogram_of([torch.tensor([1.0, float("nan")])]) is None is histogram_of([])


def test_samples_are_a_table_over_the_evaluations_also_after_a_resume(watched):
    table = json.loads((watched / "tables" / "validation_samples.json").read_text())
    assert table["columns"] == ["step", "text"]
    assert table["rows"] == [[4, "first"], [4, "second"], [8, "first"], [8, "second"]]


def test_rows_of_layers_after_the_checkpoint_are_dropped_on_a_resume(tmp_path, watched):
    class Killed(Exception):
        pass

    def dying(step, split):
        if step == 7 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            raise Killed
        return loops.batches(step, split)

    with pytest.raises(Killed):
        loops.run(tmp_path / "run", loops.config(), make=dying, tracking=EVERY)
    loops.run(tmp_path / "run", loops.config(), make=dying, tracking=EVERY)
    assert (tmp_path / "run" / "layers.jsonl").read_bytes() == (watched / "layers.jsonl").read_bytes()
