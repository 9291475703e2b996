"""Setup of a forked child: it redirects its output, counts file events, runs a command and exits."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

PRELOADED = [
    *("pretrain.run", "pretrain.plan_command", "pretrain.translation_scores", "finetune.run", "finetune.metrics"),
    *("finetune.baselines", "mini_llm.tokenization.fast", "chaos.broken", "accelerate", "sklearn.linear_model"),
]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}


def preload() -> None:
    """Import in the parent what the commands need, so that children start immediately."""
    for name in PRELOADED:
        import_module(name)
    # `transformers` imports its submodules lazily.
    assert import_module("transformers").LlamaTokenizer


def become(folder: Path, output: Path, environment: dict[str, str]) -> None:
    """Give this process its own working directory, output and environment."""
    os.chdir(folder)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(environment)
    os.environ.pop("PYTEST_CURRENT_TEST", None)


def count_events(counter: Path, kill_at: int | None, only_saving: bool) -> None:
    """Count file events: audited calls that change files, fsync, write, truncate, and the engine's fault points.

    `counter` receives the count when the command ends. The process is killed (SIGKILL) instead of event `kill_at`.
    """
    from mini_llm.engine.run import fault_points as faults

    count = 0
    lock = threading.Lock()

    def happened() -> None:
        nonlocal count
        if only_saving and not threading.current_thread().name.startswith("checkpoint"):
            return
        with lock:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def audited(event: str, arguments: tuple) -> None:
        if event in EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            happened()

    def counted(function: Callable) -> Callable:
        def call(*arguments: object) -> object:
            happened()
            return function(*arguments)

        return call

    sys.addaudithook(audited)
    for name in ("fsync", "ftruncate", "write"):
        setattr(os, name, counted(getattr(os, name)))
    faults.listeners.append(lambda _: happened())
    global _report
    _report = lambda: counter.write_text(str(count))  # noqa: E731


_report: Callable[[], object] = lambda: None  # noqa: E731


def run(stage: str, arguments: list[str], prepare: Callable[[], None] | None = None) -> NoReturn:
    """Run `python -m <stage> <arguments>` in this process, then exit."""
    from mini_llm.engine import loop
    from mini_llm.engine.cli import run_app

    code = 1
    try:
        # Timing matrix products takes 0.3 s and only gives a figure that is not compared.
        loop.matmul_ceiling = lambda *_: 1e12
        if prepare is not None:
            prepare()
        sys.argv = [stage, *arguments]
        run_app(import_module(f"{stage}.__main__").app, stage, arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        # The fault may have made the folder or the output unusable.
        for action in (_report, sys.stdout.flush, sys.stderr.flush):
            with suppress(OSError, ValueError):
                action()
        os._exit(code)
