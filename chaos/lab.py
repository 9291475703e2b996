"""Launches runs in forked child processes, gives them working folders, and compares their results.

A child runs the real command line (`run_app`) with real arguments. The parent has imported everything, so that forking
saves the import of torch in hundreds of launches. It must not start threads or compute with torch before it forks.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from chaos import child
from chaos.registry import Differs, Outcome, check

Case = TypeVar("Case")
WORKERS = 2
SAVE_EVERY, STEPS = 3, 12
COMMON = [
    f"max_steps={STEPS}",
    "budget=null",
    "evaluate_every=4",
    f"save_every={SAVE_EVERY}",
    "runtime.precision=fp32",
    "runtime.device=cpu",
    "tracking.wandb=disabled",
]
SIZES = [
    *("sizes.hidden_size=32", "sizes.num_hidden_layers=2", "sizes.num_attention_heads=2"),
    *("sizes.max_position_embeddings=32", "vocab_size=640", "global_batch_size=8"),
]
# run name: (stage, arguments)
COMMANDS = {
    "gpt": ("pretrain", ["--data", "text.txt", "run=gpt", *COMMON, *SIZES]),
    "mlm": ("pretrain", ["--model", "mlm", "--data", "text.txt", "run=mlm", *COMMON, *SIZES]),
    "t5": ("pretrain", ["--model", "t5", "--data", "text.txt", "run=t5", *COMMON, *SIZES]),
    "classifier": (
        "finetune",
        ["--model", "runs/gpt", "--data", "labels.csv", "run=classifier", "batch_size=8", *COMMON],
    ),
}
COMMANDS["generate"] = ("generate", ["runs/gpt", "dado", "--max-new-tokens", "3000"])
FRUIT, METAL = ["apple", "pear", "plum", "cherry", "melon"], ["iron", "copper", "tin", "lead", "silver"]


class Lab:
    """Creates folders below `root` and launches runs. Random moments come from `seed`.

    `quick` tells faults to run only a sample of their cases; `kills` is the number of kills of fault H3.
    """

    def __init__(self, root: Path, seed: int = 0, quick: bool = False, kills: int = 200) -> None:
        self.root = root
        self.quick = quick
        self.kills = kills
        self.seed = seed
        self.random = random.Random(seed)
        self._references: dict[str, Path] = {}
        self._count = 0

    def folder(self, name: str, ready: str | None = None, run: str | None = None) -> Path:
        """Create a working folder with data.

        `ready` names a run: its tokenizer and token store (for a classifier the pretrained model) are copied into the
        folder. `run` names a run that is copied too, finished.
        """
        self._count += 1
        folder = self.root / f"{self._count:04d}-{name}"
        folder.mkdir(parents=True)
        write_data(folder)
        if ready is not None or run is not None:
            source = self.reference(run or ready)
            for path in (source / "runs").iterdir():
                if path.is_dir() and path.name != (None if run else ready):
                    shutil.copytree(path, folder / "runs" / path.name)
        return folder

    def reference(self, run: str) -> Path:
        """The folder of the undisturbed, finished run; created on first use."""
        if run not in self._references:
            folder = self.folder(f"reference-{run}")
            if run == "classifier":
                shutil.copytree(self.reference("gpt") / "runs", folder / "runs")
            outcome = self.launch(folder, run)
            check(outcome.code == 0, f"the undisturbed run {run} failed: {outcome.text[-1500:]}")
            self._references[run] = folder
        return self._references[run]

    def launch(
        self,
        folder: Path,
        run: str,
        *more: str,
        kill_after: float | None = None,
        kill_at: int | None = None,
        only_saving: bool = False,
        signals: tuple[tuple[float, int], ...] = (),
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
        timeout: float = 300,
    ) -> Outcome:
        """Run the command of `run` with the arguments `more` in a forked child and wait until it ends.

        kill_after: send SIGKILL after this many seconds. kill_at: send SIGKILL instead of file event number kill_at
        (from 1); with `only_saving`, only events of the saving thread count. signals: pairs (seconds, signal number).
        prepare: called in the child before the command.
        """
        started = time.monotonic()
        pid = self.start(
            folder, run, *more, kill_at=kill_at, only_saving=only_saving, environment=environment, prepare=prepare
        )
        for seconds, number in sorted([*signals, *([(kill_after, signal.SIGKILL)] if kill_after is not None else [])]):
            if wait(pid, started + seconds) is None:
                os.kill(pid, number)
            else:
                break
        return self.join(pid, folder, run, started, timeout)

    def start(
        self,
        folder: Path,
        run: str,
        *more: str,
        kill_at: int | None = None,
        only_saving: bool = False,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> int:
        """Start a launch; returns the process id for `join`. Arguments are those of `launch`."""
        stage, arguments = COMMANDS[run]
        output, counter = folder / f"output-{run}.txt", folder / "events.txt"
        output.unlink(missing_ok=True)
        counter.unlink(missing_ok=True)
        pid = fork()
        if pid == 0:
            try:
                child.become(folder, output, environment or {})
                child.count_events(counter, kill_at, only_saving)
                child.run(stage, [*arguments, *more], prepare)
            finally:
                # A child must never continue as a second campaign.
                os._exit(70)
        return pid

    def join(self, pid: int, folder: Path, run: str, started: float, timeout: float = 300) -> Outcome:
        """Wait for a started launch. Raises Differs if it does not end within `timeout` seconds."""
        output = folder / f"output-{run}.txt"
        status = wait(pid, time.monotonic() + timeout)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            wait(pid, time.monotonic() + 60)
            raise Differs(f"still running after {timeout:.0f} s: {read(output)[-800:]}")
        events = int(read(folder / "events.txt") or 0)
        return Outcome(status, read(output), time.monotonic() - started, events)

    def finish(self, folder: Path, run: str, *more: str) -> Outcome:
        """Run the same command again until it finishes. Raises Differs if it fails."""
        outcome = self.launch(folder, run, *more)
        check(outcome.code == 0, f"the same command again ended with {outcome.code}: {outcome.text[-1500:]}")
        return outcome

    def share(self, cases: Sequence[Case], try_case: Callable[[Case], Any]) -> list[Any]:
        """Call try_case(case) for every case in two forked processes; returns the results, JSON values, in order.

        Raises Differs with the message of the first case that raises.
        """
        if not cases:
            return []
        self._count += 1
        files = [self.root / f"shared-{self._count:04d}-{worker}.json" for worker in range(WORKERS)]
        workers = []
        for worker, file in enumerate(files):
            pid = fork()
            if pid == 0:
                # Each worker needs its own folder names and random numbers.
                self._count = 100_000 * (worker + 1) + self._count
                found: list[Any] = []
                try:
                    for case in cases[worker::WORKERS]:
                        found.append(["fine", try_case(case)])
                except BaseException as error:
                    kind = "differs" if isinstance(error, Differs) else type(error).__name__
                    found.append([kind, f"{case}: {error}"])
                file.write_text(json.dumps(found))
                os._exit(0)
            workers.append(pid)
        for pid in workers:
            os.waitpid(pid, 0)
        results: list[Any] = [None] * len(cases)
        for worker, file in enumerate(files):
            for i, (kind, value) in enumerate(json.loads(file.read_text())):
                check(kind == "fine", value if kind == "differs" else f"{kind}: {value}")
                results[worker + i * WORKERS] = value
        return results

    def compare(self, folder: Path, run: str, own_save: bool = False) -> None:
        """Raise Differs unless the finished run has the same bytes as the undisturbed one.

        With `own_save`, a signal caused an additional checkpoint, for which an older one may have been pruned: the
        newest checkpoint must be in both runs, and checkpoints that only one of them has are ignored.
        """
        expected, found = final_bytes(self.reference(run) / "runs" / run), final_bytes(folder / "runs" / run)
        if own_save:
            sides = [
                {name.split("/")[1] for name in side if name.startswith("checkpoints/step-")}
                for side in (expected, found)
            ]
            check(max(sides[0]) == max(sides[1]), f"{run}: the newest checkpoint is {max(sides[1])}")
            left_out = tuple(f"checkpoints/{step}/" for step in sides[0] ^ sides[1])
            expected, found = (
                {name: value for name, value in side.items() if not name.startswith(left_out)}
                for side in (expected, found)
            )
        different = [name for name in expected | found if expected.get(name) != found.get(name)]
        check(not different, f"{run}: {', '.join(sorted(different))} differ from the undisturbed run's")


_ended: dict[int, int] = {}


def fork() -> int:
    """os.fork for children that `wait` waits for. A process id may be reused, so its old exit code is forgotten."""
    sys.stdout.flush()
    pid = os.fork()
    _ended.pop(pid, None)
    return pid


def wait(pid: int, until: float) -> int | None:
    """The exit code of a child, or None if it is still running at `until`, a time of time.monotonic()."""
    while pid not in _ended:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _ended[pid] = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() >= until:
            return None
        time.sleep(0.005)
    return _ended[pid]


def read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def write_data(folder: Path) -> None:
    """Write a text and a labelled table, the same ones every time."""
    generator = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 3))) for _ in range(900)]
    (folder / "text.txt").write_text(" ".join(generator.choices(words, k=6000)))
    rows = []
    for i in range(160):
        label, words = (("fruit", FRUIT), ("metal", METAL))[i % 2]
        rows.append(f"number {i}: {words[i % 5]} and {words[i // 5 % 5]} lie on the table,{label}\n")
    (folder / "labels.csv").write_text("text,label\n" + "".join(rows))


def final_bytes(run: Path) -> dict[str, bytes]:
    """The content of a run that must not depend on interruptions: model, checkpoints and metrics, but not times."""
    found = [path for path in (run / "model").rglob("*") if path.is_file()]
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in found}
    for checkpoint in (run / "checkpoints").glob("[sb]*-*"):
        for path in checkpoint.rglob("*"):
            name = path.relative_to(run).as_posix()
            if path.name == "state.json":
                state = json.loads(path.read_text())
                state.pop("elapsed")
                files[name] = json.dumps(state).encode()
            elif path.is_file() and path.name != "manifest.json":
                files[name] = path.read_bytes()
    files["metrics.jsonl"] = (run / "metrics.jsonl").read_bytes()
    return files


def steps_recorded(run: Path) -> int:
    """The last step in metrics.jsonl; an incomplete last line is ignored."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True) if (run / "metrics.jsonl").is_file() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    return max(steps, default=0)


def saved_step(run: Path) -> int:
    """The step of the newest checkpoint. Raises Differs if any published checkpoint is damaged."""
    from mini_llm.engine.checkpoint.format import find_damage

    newest = 0
    for path in sorted((run / "checkpoints").glob("step-*")):
        damage = find_damage(path)
        check(damage is None, f"{path.name}: {damage}")
        newest = int(path.name[5:])
    return newest


def check_nothing_lost(run: Path) -> int:
    """The number of steps lost by a kill: at most two save intervals, since training continues during a save."""
    recorded, saved = steps_recorded(run), saved_step(run)
    check(
        recorded - saved <= 2 * SAVE_EVERY + 1,
        f"step {recorded} was recorded, but the newest checkpoint is that of step {saved}",
    )
    return max(recorded - saved, 0)
