"""`python -m mini_llm doctor`: a broken machine is named with the command that mends it, and a sound one is ok."""

import json
import os
import sys

import pytest
from rich.console import Console

from mini_llm.engine.doctor import checks, software, surroundings
from mini_llm.engine.doctor.finding import Finding, ok, problem

CHECKS = ["Python", "packages", "PyTorch", "kernels", "threads", "GPU", "DeepSpeed", "gloo", "W&B", "cache", "disk"]


def run(folder, monkeypatch, as_json: bool = True) -> int:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return checks.print_checks(folder / "runs", as_json, Console(width=150))


def test_every_subject_has_a_line_and_a_sound_machine_no_problem(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert run(tmp_path, monkeypatch) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert set(CHECKS) | {"compiler", "clock", "configurations", "built-in text"} <= set(found)
    assert {item["state"] for item in found.values()} <= {"ok", "warning"}
    assert all(item["fix"] for item in found.values() if item["state"] != "ok")


def test_a_problem_gives_exit_code_1_and_a_check_that_breaks_ends_no_other(tmp_path, monkeypatch, capsys):
    def broken() -> Finding:
        raise RuntimeError("no such device")

    chosen = {"one": broken, "two": lambda: ok("two", "fine"), "three": lambda: None}
    monkeypatch.setattr(checks, "checks", lambda runs: chosen)
    assert run(tmp_path, monkeypatch, as_json=False) == 1
    shown = capsys.readouterr().out
    assert "RuntimeError: no such device" in shown and "two" in shown and "1 problem, 0 warnings" in shown
    monkeypatch.setattr(checks, "checks", lambda runs: {"one": lambda: [problem("a", "b", "python -m pretrain plan")]})
    assert run(tmp_path, monkeypatch, as_json=False) == 1
    assert "python -m pretrain plan" in capsys.readouterr().out


def test_an_old_python_and_wrong_packages_are_problems(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert software.check_python().state == "problem"
    declared = ["torch>=2", "numpy>=999", "no-such-package>=1", 'absent; python_version < "3"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: declared)
    found = software.check_packages()
    assert found.state == "problem" and "numpy is" in found.text and "no-such-package is missing" in found.text
    assert "torch" not in found.text and "absent" not in found.text


def test_a_machine_without_a_compiler_gets_warnings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(software, "compiler", lambda: None)
    for check in (software.check_compiler, software.check_kernels, software.check_deepspeed):
        found = check()
        assert found.state == "warning" and found.fix == "apt-get install g++"


@pytest.mark.parametrize(("threads", "variable", "state"), [(1, "1", "warning"), (1, None, "ok"), (5, None, "warning")])
def test_too_many_or_too_few_threads_are_a_warning(monkeypatch, threads, variable, state):
    monkeypatch.setattr(software, "usable_cores", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert software.check_threads().state == state


@pytest.mark.parametrize(
    ("variables", "state", "word"),
    [
        ({"WANDB_MODE": "disabled"}, "ok", "switched off"),
        ({"WANDB_MODE": "offline"}, "ok", "offline"),
        ({"WANDB_MODE": "online"}, "problem", "no key"),
        ({"WANDB_API_KEY": "a-secret-of-mine"}, "ok", "a key is present"),
        ({}, "ok", "recorded offline"),
    ],
)
def test_what_wandb_will_do_is_said_without_the_key(tmp_path, monkeypatch, variables, state, word):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = surroundings.check_wandb()
    assert found.state == state and word in found.text and "secret" not in str(found)


def test_a_key_in_netrc_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password 0123\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "a key is present" in surroundings.check_wandb().text


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_found(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert surroundings.check_disk(tmp_path / "file").state == "problem"
    assert surroundings.check_disk(tmp_path / "runs").state == "ok"
    usage = type("Usage", (), {"free": 5_000_000, "total": 10**12})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    found = surroundings.check_disk(tmp_path)
    assert found.state == "warning" and "5.0 MB of 1000.0 GB" in found.text
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    states = {item.name: item.state for item in surroundings.check_caches()}
    assert states["cache"] == "problem"


def test_a_wrong_clock_is_found(tmp_path):
    assert surroundings.check_clock(tmp_path).state == "ok"
    assert surroundings.check_clock(tmp_path, lambda: 1000.0).state == "problem"
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "metrics.jsonl").write_text("")
    os.utime(tmp_path / "gpt" / "metrics.jsonl", (4e9, 4e9))
    assert "files in runs/ are newer" in surroundings.check_clock(tmp_path).text


def test_missing_configurations_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("mini_llm.stages.CONFIGS", tmp_path)
    found = surroundings.check_configurations()
    assert found.state == "problem" and "model, pretrain, finetune" in found.text
