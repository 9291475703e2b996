"""Faults of numbers: losses and gradients that are not finite, on one rank alone; a poisoned document."""

import json
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING

from chaos.ranks import LAUNCHER, LONG, ROOT, SETTINGS, write_text
from chaos.registry import Seen, check, fault

if TYPE_CHECKING:
    from chaos.lab import Lab


@fault(26, "loss or gradient not finite on one rank", "the step is left out on all; parameters and optimizer untouched")
def not_finite(lab: "Lab") -> Seen:
    out = lab.folder("not-finite") / "seen.json"
    command = [sys.executable, "-m", *LAUNCHER, "chaos.non_finite", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * LONG)
    check(done.returncode == 0, done.stderr[-1500:])
    seen = json.loads(out.read_text())
    cases = 0
    for name, found in seen.items():
        if name.endswith("expected"):
            expected = found
            continue
        where = "loss" if " loss " in name else "gradient"
        flags = [[where != "loss", False, [1] if where == "loss" else []]] * 2
        check(found["seen"] == flags, f"{name}: seen {found['seen']}")
        check(found["untouched"], f"{name}: parameters or optimizer state have changed")
        check(found["later"] == expected, f"{name}: later losses differ from those of a run without the step")
        cases += 1
    return Seen(f"{cases} cases over DDP and ZeRO 1, 2, 3, fp32 and bf16: left out twice in a row, nothing touched")


@fault(27, "a poisoned document", "the spike is flagged with the document's name, the run goes on")
def spike(lab: "Lab") -> Seen:
    folder = lab.folder("spike")
    write_text(folder)
    letters = random.Random(0)
    (folder / "noise.txt").write_text("".join(letters.choice("QXZ#@&%!?0123456789") for _ in range(2000)))
    command = [sys.executable, "-m", "pretrain", "--data", "*.txt", "run=poisoned", *SETTINGS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LONG)
    check(done.returncode == 0, done.stderr[-1500:])
    table = folder / "runs" / "poisoned" / "tables" / "spikes.json"
    check(table.is_file(), f"no spike was flagged: {done.stderr[-1500:]}")
    rows = json.loads(table.read_text())["rows"]
    named = [row for row in rows if "noise.txt" in row[-1]]
    check(len(named) == len(rows), f"flagged without the poisoned document: {rows}")
    return Seen(f"{len(rows)} steps flagged, all name noise.txt; the run ended with 0", 0)
