"""Faults 1 to 7, H3: SIGKILL at every file event of a save and at random moments of every stage."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chaos.lab import Lab, check_nothing_lost, saved_step
from chaos.registry import Seen, check, fault

ROOT = Path(__file__).parent.parent
SAME = "same final bytes as the undisturbed run"
# Bound on the launches of one chain of random kills; real chains need far fewer.
MOST_LAUNCHES = 60


def at_every_event(
    lab: Lab, run: str, only_saving: bool, sample: int, prepare: Callable[[], None] | None = None
) -> Seen:
    """Kill a run at each of its file events (about `sample` of them if quick), check checkpoints, finish it."""
    launch = partial(lab.launch, run=run, only_saving=only_saving, prepare=prepare)
    events = launch(lab.folder("count", ready=run)).events
    step = max(1, events // sample) if lab.quick else 1
    cases = list(range(1, events + 1, step))

    def one(event: int) -> int:
        folder = lab.folder(f"event-{event}", ready=run)
        outcome = launch(folder, kill_at=event)
        check(outcome.code in (-signal.SIGKILL, 0), f"event {event}: exit code {outcome.code}: {outcome.text[-500:]}")
        lost = check_nothing_lost(folder / "runs" / run)
        lab.finish(folder, run)
        lab.compare(folder, run)
        check_no_leftovers(folder / "runs" / run)
        shutil.rmtree(folder)
        return lost

    return Seen(f"{len(cases)} of {events} events: all recovered, 0 bytes differ", max(lab.share(cases, one)))


def check_no_leftovers(run: Path) -> None:
    left = [path.relative_to(run) for path in run.rglob(".*tmp-*")]
    check(not left, f"temporary files left behind: {left[:3]}")


@fault(1, "kill -9 during tokenizer training", "no tokenizer or a complete one; same bytes after resuming")
def tokenizer_training(lab: Lab) -> Seen:
    expected = (lab.reference("gpt") / "runs/tokenizer-text/tokenizer.model").read_bytes()
    seconds = lab.launch(lab.folder("count"), "gpt").seconds
    cases = [lab.random.uniform(0, 0.5 * seconds) for _ in range(3 if lab.quick else 12)]

    def one(moment: float) -> int:
        folder = lab.folder("tokenizer")
        lab.launch(folder, "gpt", kill_after=moment)
        model = folder / "runs/tokenizer-text/tokenizer.model"
        visible = model.is_file()
        check(not visible or model.read_bytes() == expected, "an incomplete tokenizer was visible")
        lab.finish(folder, "gpt")
        check(model.read_bytes() == expected, "the tokenizer differs")
        lab.compare(folder, "gpt")
        return int(visible)

    done = sum(lab.share(cases, one))
    return Seen(
        f"{len(cases)} kills ({len(cases) - done} before the tokenizer was published), same tokenizer each time"
    )


@fault(2, "kill -9 at file events of tokenizer and token store", "no incomplete store is used; same store and model")
def token_store(lab: Lab) -> Seen:
    # In an empty folder a run first writes the tokenizer and the token store.
    before = lab.launch(lab.folder("count", ready="gpt"), "gpt").events
    events = lab.launch(lab.folder("count"), "gpt").events
    stop = max(events - before, 12)
    cases = list(range(1, stop + 1, max(1, stop // (6 if lab.quick else 40))))
    expected = store_bytes(lab.reference("gpt"))

    def one(event: int) -> None:
        folder = lab.folder("store")
        lab.launch(folder, "gpt", kill_at=event)
        lab.finish(folder, "gpt")
        check(store_bytes(folder) == expected, f"event {event}: the token store differs")
        lab.compare(folder, "gpt")
        shutil.rmtree(folder)

    lab.share(cases, one)
    return Seen(f"{len(cases)} of {stop} events: same store and model each time")


def store_bytes(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / "runs/tokens").rglob("*.bin")}
    check(found, "no token store")
    return found


@fault(3, "kill -9 before the first checkpoint", f"restarts from step 0; {SAME}")
def before_the_first_save(lab: Lab) -> Seen:
    folder = lab.folder("first", ready="gpt")
    outcome = lab.launch(folder, "gpt", environment={"LLM_FAULT": "step::3=kill"})
    check(outcome.code == -9 and saved_step(folder / "runs/gpt") == 0, f"exit code {outcome.code}")
    lost = check_nothing_lost(folder / "runs/gpt")
    lab.finish(folder, "gpt")
    lab.compare(folder, "gpt")
    return Seen("killed in step 3, restarted, 0 bytes differ", lost)


@fault(4, "kill -9 at every file event of every save", f"every published checkpoint is complete; {SAME}")
def every_event_of_a_save(lab: Lab) -> Seen:
    return at_every_event(lab, "gpt", True, 8)


@fault(5, "kill -9 between rename and pruning", "the new checkpoint is used, old ones are pruned later")
def before_pruning(lab: Lab) -> Seen:
    folder = lab.folder("prune", ready="gpt")
    # The third save is the first one that prunes a checkpoint.
    outcome = lab.launch(folder, "gpt", environment={"LLM_FAULT": "save-published::3=kill"})
    found = len(list((folder / "runs/gpt/checkpoints").glob("step-*")))
    check(outcome.code == -9 and found == 3, f"exit code {outcome.code}, {found} checkpoints")
    check(saved_step(folder / "runs/gpt") == 9, "the new checkpoint is not the newest")
    lost = check_nothing_lost(folder / "runs/gpt")
    lab.finish(folder, "gpt")
    lab.compare(folder, "gpt")
    return Seen("3 checkpoints after the kill, 2 at the end, 0 bytes differ", lost)


@fault(6, "kill -9 in backward, update, evaluation, last step, export; after the end", f"{SAME}; then a no-op")
def moments_of_a_run(lab: Lab) -> Seen:
    cases = ["backward:5", "update:8", "evaluate::2", "step::12", "export::1", "export-model::1"]
    run = "gpt"

    def one(case: str) -> int:
        folder = lab.folder("moment", ready=run)
        kind, _, nth = case.partition(":")
        if kind in ("backward", "update"):
            outcome = lab.launch(folder, run, prepare=partial(kill_inside, kind, int(nth)))
        else:
            outcome = lab.launch(folder, run, environment={"LLM_FAULT": f"{case}=kill"})
        check(outcome.code == -9, f"exit code {outcome.code}: {outcome.text[-500:]}")
        lost = check_nothing_lost(folder / "runs" / run)
        lab.finish(folder, run)
        lab.compare(folder, run)
        return lost

    lost = lab.share(cases, one)
    folder = lab.folder("again", run=run)
    outcome = lab.finish(folder, run)
    check("Nothing to do" in outcome.text, "the finished run was not recognized as finished")
    lab.compare(folder, run)
    return Seen(f"{len(cases)} moments, 0 bytes differ; a finished run is a no-op with exit 0", max(lost))


def kill_inside(kind: str, nth: int) -> None:
    """Kill this process during its nth backward pass or parameter update."""
    from accelerate import Accelerator
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    count = 0
    if kind == "backward":
        original = Accelerator.backward

        def backward(self, loss, **options):
            nonlocal count
            count += 1
            if count == nth:
                loss.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
            return original(self, loss, **options)

        Accelerator.backward = backward
        return

    def before(*_: object) -> None:
        nonlocal count
        count += 1
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(before)


@fault(7, "kill -9 at file events of fine-tuning, including best weights and scoring", SAME)
def fine_tuning(lab: Lab) -> Seen:
    lab.quick, quick = True, lab.quick
    try:
        return at_every_event(lab, "classifier", False, 6 if quick else 40)
    finally:
        lab.quick = quick


@fault("H3", "repeated kill -9 at random moments", f"the run finishes; {SAME}")
def random_moments(lab: Lab) -> Seen:
    """Kills each of several runs a few times, lab.kills in all; half of the runs start in an empty folder."""
    kills = 8 if lab.quick else lab.kills
    runs = ("gpt", "classifier", "mlm", "t5")
    seconds = {run: lab.launch(lab.folder("time", ready=run), run).seconds for run in runs}
    chains = max(2, kills // 5)
    share, rest = divmod(kills, chains)
    cases = [(i, runs[i % len(runs)], share + (i < rest), lab.random.random()) for i in range(chains)]

    def one(case: tuple[int, str, int, float]) -> tuple[int, int, int]:
        number, run, wanted, seed = case
        rng = random.Random(seed)
        folder = lab.folder(f"random-{number}", ready=run if number % 2 or run == "classifier" else None)
        done = lost = launches = 0
        while done < wanted and launches < MOST_LAUNCHES:
            launches += 1
            # The remaining time shrinks with every launch, so prefer early moments.
            moment = seconds[run] * rng.random() ** 1.5
            if lab.launch(folder, run, kill_after=moment).code == -signal.SIGKILL:
                done += 1
                lost = max(lost, check_nothing_lost(folder / "runs" / run))
            else:
                # The run finished before the kill: start a new one.
                lab.compare(folder, run)
                shutil.rmtree(folder)
                folder = lab.folder(f"random-{number}", ready=run)
        lab.finish(folder, run)
        lab.compare(folder, run)
        shutil.rmtree(folder)
        return done, lost, launches

    found = lab.share(cases, one)
    total = sum(done for done, _, _ in found)
    check(total == kills, f"only {total} of {kills} kills happened before a run ended")
    return Seen(f"{total} kills, 0 unreadable runs, 0 bytes differ", max(lost for _, lost, _ in found))


@fault("H3b", "kill -9 of the process group of python -m", SAME)
def process_groups(lab: Lab) -> Seen:
    from chaos.lab import COMMANDS

    stage, arguments = COMMANDS["gpt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", stage, *arguments]
    folder = lab.folder("group", ready="gpt")
    run = folder / "runs/gpt"
    lost = kills = 0
    for wanted in (1,) if lab.quick else (1, 5, 9):
        process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=-1
        )
        deadline = time.monotonic() + 240
        # Kill it a random time after it has recorded that step.
        while process.poll() is None and time.monotonic() < deadline:
            rows = (run / "metrics.jsonl").read_text().count("\n") if (run / "metrics.jsonl").is_file() else 0
            if rows >= wanted:
                time.sleep(lab.random.uniform(0, 0.05))
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.communicate()
        kills += process.returncode == -9
        lost = max(lost, check_nothing_lost(run))
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    check(result.returncode == 0, result.stderr[-800:])
    lab.compare(folder, "gpt")
    return Seen(f"{kills} groups killed, 0 bytes differ", lost)
