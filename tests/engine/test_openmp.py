"""How threads wait for each other is set before torch is imported, whatever starts us, and can be set by the user."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mini_llm import openmp

ROOT = Path(__file__).parents[2]
# Ends the process when torch is first looked up, before it is loaded, and says what its OpenMP library will read.
AT_TORCH = """
import os, sys
class AtTorch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, AtTorch())
sys.path.insert(0, {root!r})
import {module}
"""


def at_torch(module: str, **environment: str) -> str:
    mine = {key: value for key, value in os.environ.items() if key not in openmp.OWN_SETTINGS}
    command = [sys.executable, "-c", AT_TORCH.format(root=str(ROOT), module=module)]
    return subprocess.run(command, env={**mine, **environment}, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("module", ["pretrain.run", "finetune.run", "generate.load", "mini_llm.engine.loop"])
def test_it_is_set_before_torch_is_imported(module):
    assert at_torch(module) == str(openmp.SPIN_ROUNDS)


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "17"), ("OMP_WAIT_POLICY", "active")])
def test_a_users_own_setting_stays(name, value):
    assert at_torch("mini_llm.model", **{name: value}) == ("17" if name == "GOMP_SPINCOUNT" else "None")


def first_import(path: Path) -> str:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            return node.names[0].name
    return ""


def test_every_stage_imports_mini_llm_before_anything_else():
    stages = [path for path in ROOT.glob("*/__init__.py") if (path.parent / "__main__.py").is_file()]
    ours = [path for path in stages if path.parent.name not in ("mini_llm", "benchmarks", "chaos", "tests")]
    assert len(ours) >= 4
    assert {path: first_import(path) for path in ours} == dict.fromkeys(ours, "mini_llm")


@pytest.mark.skipif(sys.platform != "linux", reason="sched_setattr is Linux's")
def test_the_scheduler_is_asked_for_short_turns_and_nothing_else_changes(monkeypatch):
    before = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    for name in openmp.OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    openmp.wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == str(openmp.SPIN_ROUNDS)
    assert (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)) == before
