"""Faults 8 to 11, 59: signals, a closed terminal, a closed pipe."""

import os
import pty
import signal
import time
from collections.abc import Callable
from pathlib import Path

from chaos import child
from chaos.lab import COMMANDS, Lab, check_nothing_lost, wait
from chaos.registry import Seen, check, expect, fault

RUN = "gpt"


def signal_at(point: str, nth: int, *numbers: int) -> Callable[[], None]:
    """A function that makes a child send itself these signals when it reaches fault point `point` the nth time."""

    def prepare() -> None:
        from mini_llm.engine.run import fault_points as faults

        count = 0

        def listen(name: str) -> None:
            nonlocal count
            count += name == point
            if name == point and count == nth:
                for number in numbers:
                    os.kill(os.getpid(), number)
                    # Give Python time to handle each signal.
                    time.sleep(0.05)

        faults.listeners.append(listen)

    return prepare


def stopped(lab: Lab, code: int, prepare: Callable[[], None], run: str = RUN, saved: bool = True) -> int:
    """Stop a run with `prepare`, check its exit code, finish it with the same command; returns the lost steps."""
    folder = lab.folder("stopped", ready=run)
    outcome = lab.launch(folder, run, prepare=prepare)
    expect(outcome, code, *(["saved. Run the same command again"] if saved else []))
    lost = check_nothing_lost(folder / "runs" / run)
    check(not saved or lost == 0, f"{lost} steps were lost")
    check(outcome.seconds < 60, f"it took {outcome.seconds:.0f} s to end")
    lab.finish(folder, run)
    lab.compare(folder, run, own_save=saved)
    return lost


@fault(8, "SIGTERM during a step", "checkpoint saved, exit 143; same final bytes")
def terminated(lab: Lab) -> Seen:
    steps = [2, 5] if lab.quick else [1, 2, 4, 5, 7, 8, 11]
    cases = [(run, step) for run in ((RUN,) if lab.quick else (RUN, "classifier")) for step in steps]
    lost = lab.share(cases, lambda case: stopped(lab, 143, signal_at("step", case[1], signal.SIGTERM), case[0]))
    return Seen(f"{len(cases)} runs, exit 143, 0 bytes differ", max(lost))


@fault(9, "SIGINT once, twice", "once: save, exit 130; twice: exits immediately, previous checkpoint intact")
def interrupted(lab: Lab) -> Seen:
    stopped(lab, 130, signal_at("step", 5, signal.SIGINT))
    lost = stopped(lab, 130, signal_at("step", 8, signal.SIGINT, signal.SIGINT), saved=False)
    return Seen("130 and 130, 0 bytes differ", lost)


@fault(10, "SIGTERM during a save, once and twice", "exit 143, no incomplete checkpoint, same final bytes")
def terminated_while_saving(lab: Lab) -> Seen:
    lost = 0
    for point in ("save-begin", "save-model", "save-manifest", "directory-synced", "save-published"):
        for numbers in ((signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM)):
            lost = max(lost, stopped(lab, 143, signal_at(point, 2, *numbers), saved=len(numbers) == 1))
    return Seen("5 moments, once and twice, exit 143, 0 bytes differ", lost)


def in_terminal(folder: Path, run: str) -> tuple[int, int]:
    """Launch in a new pseudo-terminal; returns (process id, file descriptor of its master end)."""
    stage, arguments = COMMANDS[run]
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(folder)
        child.run(stage, arguments, slow_steps)
    return pid, master


def slow_steps() -> None:
    from mini_llm.engine.run import fault_points as faults

    faults.listeners.append(lambda name: time.sleep(0.3) if name == "step" else None)


@fault(11, "SIGHUP (terminal closed), SIGPIPE (output closed)", "save, exit 129; exit 1 or 141; same final bytes")
def terminal_closed(lab: Lab) -> Seen:
    folder = lab.folder("hup", ready=RUN)
    pid, master = in_terminal(folder, RUN)
    deadline = time.monotonic() + 60
    metrics = folder / "runs" / RUN / "metrics.jsonl"
    os.set_blocking(master, False)
    while time.monotonic() < deadline and not (metrics.is_file() and metrics.read_text().count("\n") >= 4):
        try:
            os.read(master, 1 << 16)
        except OSError:
            time.sleep(0.01)
    os.close(master)
    code = wait(pid, time.monotonic() + 60)
    check(code == 128 + signal.SIGHUP, f"exit code {code} after the terminal was closed")
    check(check_nothing_lost(folder / "runs" / RUN) == 0, "steps were lost")
    lab.finish(folder, RUN)
    lab.compare(folder, RUN)

    folder = lab.folder("pipe", ready=RUN)

    def close_output() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(reader)

    outcome = lab.launch(folder, RUN, prepare=close_output)
    # Rich exits with 1 on a broken pipe.
    check(outcome.code in (1, 141), f"exit code {outcome.code} with a closed pipe")
    lost = check_nothing_lost(folder / "runs" / RUN)
    lab.finish(folder, RUN)
    lab.compare(folder, RUN)
    return Seen(f"exit 129 and {outcome.code}, 0 bytes differ", lost)


@fault(59, "Ctrl-C during generation", "exit 130, no traceback")
def generation_interrupted(lab: Lab) -> Seen:
    folder = lab.folder("generate", run=RUN)
    whole = lab.launch(folder, "generate")
    expect(whole, 0)
    outcome = lab.launch(folder, "generate", signals=((min(1.0, whole.seconds / 2), signal.SIGINT),))
    check(outcome.code in (0, 130) and "Traceback" not in outcome.text, f"{outcome.code}: {outcome.text[-500:]}")
    return Seen(f"exit {outcome.code}")
