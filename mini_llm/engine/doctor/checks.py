"""Run all checks and print a line for each."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from mini_llm.engine.doctor import software, surroundings
from mini_llm.engine.doctor.finding import Finding, problem
from mini_llm.stages import local_commands

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_WIDTH = 22

Check = Callable[[], Finding | list[Finding] | None]


def checks(runs: Path) -> dict[str, Check]:
    """The checks by name, in the order of the lines."""
    return {
        "Python": software.check_python,
        "packages": software.check_packages,
        "PyTorch": software.check_torch,
        "compiler": software.check_compiler,
        "kernels": software.check_kernels,
        "threads": software.check_threads,
        "GPU": software.check_gpu,
        "DeepSpeed": software.check_deepspeed,
        "gloo": surroundings.check_processes,
        "NCCL": surroundings.check_nccl,
        "W&B": surroundings.check_wandb,
        "caches": surroundings.check_caches,
        "disk": lambda: surroundings.check_disk(runs),
        "clock": lambda: surroundings.check_clock(runs),
        "configurations": surroundings.check_configurations,
        "built-in text": surroundings.check_licence,
    }


def findings(all_checks: dict[str, Check]) -> Iterator[Finding]:
    """Run the checks. One that breaks is a problem of its own and does not end the others."""
    for name, check in all_checks.items():
        try:
            found = check()
        except Exception as error:  # the other checks matter as much
            text = f"the check failed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
            found = problem(name, text, software.INSTALL)
        yield from found if isinstance(found, list) else [found] if found else []


def print_checks(runs: Path, as_json: bool, console: Console) -> int:
    """Print the findings; the exit code: 1 if one of them is a problem."""
    start, found = time.perf_counter(), []
    for finding in findings(checks(runs)):
        found.append(finding)
        if not as_json:
            state = (f"{finding.state:<8}", STYLES[finding.state])
            console.print(Text.assemble(state, f"{finding.name:<{_WIDTH}}", finding.text), soft_wrap=True)
            if finding.fix:
                console.print(Text(f"{'':<{8 + _WIDTH}}{local_commands(finding.fix)}", style="bold"), soft_wrap=True)
    problems = sum(finding.state == "problem" for finding in found)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        warnings = sum(finding.state == "warning" for finding in found)
        seconds = time.perf_counter() - start
        console.print(f"\n{_count(problems, 'problem')}, {_count(warnings, 'warning')}, {seconds:.1f} s")
    return int(problems > 0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
