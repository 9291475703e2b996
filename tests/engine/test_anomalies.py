"""Non-finite steps are skipped on every rank and change nothing; loss spikes are reported; documents are named."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chaos.equivalence.ranks import LAYOUTS
from mini_llm.engine.batch import BatchSplit
from mini_llm.engine.errors import NonFiniteError
from mini_llm.engine.spikes import ENOUGH_LOSSES, MAX_NON_FINITE, SpikeMonitor, spike_limit
from tests.loops import batches, config, final_files, fresh, run

REPOSITORY = Path(__file__).parents[2]
FAULTS = ["fp32 loss inf", "fp32 gradient nan", "bf16 loss nan"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("anomalies") / "seen.json"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [sys.executable, "-m", *launcher, "chaos.non_finite", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_non_finite_loss_on_one_rank_skips_the_step_on_all(ranks, layout, fault):
    seen = ranks[f"{layout} {fault}"]
    in_loss = "loss" in fault
    assert seen["seen"] == [[not in_loss, False, [1] if in_loss else []]] * 2
    assert seen["untouched"]
    assert seen["later"] == ranks[f"{layout} {fault.split()[0]} expected"]


def documents(step: int, rank: int, clm: bool) -> list[str]:
    return [f"poem.txt row {step}", f"poem.txt row {step + 1}"]


def poisoned(model, bad: set[int]):
    """`model`, whose output is NaN in these training steps (from 0)."""
    calls = []

    def spoil(module, inputs, logits):
        if module.training:
            calls.append(1)
        return logits * math.nan if module.training and len(calls) - 1 in bad else None

    model.register_forward_hook(spoil)
    return model


def test_a_skipped_step_is_recorded_with_its_documents(tmp_path, capsys):
    run(tmp_path, config(), model=poisoned(fresh(), {2}), documents=documents)
    said = capsys.readouterr()
    line = "step 3: loss nan, gradient norm nan: step skipped; batch: poem.txt row 2, poem.txt row 3"
    assert line in said.out + said.err
    table = json.loads((tmp_path / "tables" / "skipped.json").read_text())
    assert table["rows"] == [[3, "nan", "nan", "poem.txt row 2, poem.txt row 3"]]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["train/skipped_steps"]) for row in rows if "train/skipped_steps" in row] == [(3, 1)]


def test_the_count_of_bad_steps_survives_a_restart(tmp_path):
    """Half of them, a kill, and the other half end the run; the documents of the last batch are in the message."""
    half = MAX_NON_FINITE // 2
    settings = config(max_steps=50, save_every=1, evaluate_every=100)

    def stopping(step: int, split: BatchSplit):
        if step == half:
            raise KeyboardInterrupt
        return batches(step, split)

    always = set(range(100))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings, make=stopping, model=poisoned(fresh(), always), documents=documents)
    with pytest.raises(NonFiniteError, match=f"{MAX_NON_FINITE} steps.*row {MAX_NON_FINITE - 1}") as stopped:
        run(tmp_path, settings, model=poisoned(fresh(), always), documents=documents)
    assert stopped.value.exit_code == 5


@pytest.mark.slow
def test_a_poisoned_batch_is_flagged_and_the_run_goes_on(tmp_path):
    """Random labels in one batch, once losses are small; a run that is stopped and resumed flags the same."""

    def make(step: int, split: BatchSplit):
        made = batches(step, split)
        if step == 70:
            for batch in made:
                batch["labels"] = torch.randint(16, batch["labels"].shape, generator=torch.Generator().manual_seed(1))
        return made

    def stopping(step: int, split: BatchSplit):
        if step == 65:
            raise KeyboardInterrupt
        return make(step, split)

    settings = config(max_steps=74, save_every=20, evaluate_every=100)
    run(tmp_path / "straight", settings, make=make, documents=documents)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", settings, make=stopping, documents=documents)
    run(tmp_path / "resumed", settings, make=make, documents=documents)
    tables = [json.loads((tmp_path / name / "tables" / "spikes.json").read_text()) for name in ("straight", "resumed")]
    assert tables[0] == tables[1]
    assert [(row[0], row[3]) for row in tables[0]["rows"]] == [(71, "poem.txt row 70, poem.txt row 71")]
    assert final_files(tmp_path / "straight") == final_files(tmp_path / "resumed")


def test_the_definition_of_a_spike():
    generator = np.random.default_rng(0)
    losses = list(2 + 0.1 * generator.standard_normal(64))
    assert 2.5 < spike_limit(losses) < 3.2
    assert spike_limit(losses[: ENOUGH_LOSSES - 1]) == math.inf
    # Half of the window may be spikes themselves, and equal losses leave room for noise.
    assert spike_limit(losses[:40] + [100.0] * 20) < 5
    assert spike_limit([2.0] * 64) == pytest.approx(2.16)


def test_a_change_of_the_objective_is_no_spike():
    """The loss of masked tokens is above that of the next token before it; later spikes are found as ever."""
    alerts, tables = [], []
    tracker = SimpleNamespace(alert=lambda *said: alerts.append(said), table=lambda *table: tables.append(table))
    context = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1), overflow_is_expected=False)
    losses = [3.0 - 0.01 * step for step in range(40)] + [6.0 - 0.01 * step for step in range(40)]
    monitor = SpikeMonitor()
    for step, loss in enumerate(losses, start=1):
        monitor.check(step, loss, 1.0, step <= 40, context, tracker, documents, print)
        monitor = SpikeMonitor(**asdict(monitor))  # as after a restart
    assert not alerts and not tables and len(monitor.losses) == 40
    monitor.check(81, 9.0, 1.0, False, context, tracker, documents, print)
    assert len(alerts) == 1 and tables[0][0] == "spikes" and tables[0][2][0][0] == 81
