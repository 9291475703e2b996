"""Fault 26: losses and gradients that are not finite on one rank."""

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from chaos.ranks import LAUNCHER, LONG, ROOT
from chaos.registry import Seen, check, fault

if TYPE_CHECKING:
    from chaos.lab import Lab


@fault(26, "loss or gradient not finite on one rank", "all ranks skip the step; parameters, optimizer unchanged")
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
        check(found["seen"] == flags, f"{name}: observed {found['seen']}")
        check(found["untouched"], f"{name}: parameters or optimizer state have changed")
        check(found["later"] == expected, f"{name}: later losses differ from a run without that step")
        cases += 1
    return Seen(f"{cases} cases, DDP and ZeRO 1, 2, 3, fp32 and bf16: two consecutive steps skipped, state unchanged")
