"""Faults 32, 33: the W&B server fails, hangs or refuses the key; a run with W&B is killed."""

import json
import os
import signal
import time
from pathlib import Path

from chaos.lab import Lab, fork, wait
from chaos.registry import NotHere, Seen, check, expect, fault

RUN = "gpt"
# Of waiting for W&B to start and to finish, instead of 20 and 60, and of the longest delay that is allowed with them.
SECONDS, MOST_DELAY = 2.0, 30.0


@fault(32, "W&B server refuses, fails, hangs, closes, is slow, dies later; no key", "same bytes, exit 0, one warning")
def server_trouble(lab: Lab) -> Seen:
    try:
        from tests.wandb_server import Server
    except ImportError as error:
        raise NotHere(f"needs the tests ({error})") from None
    modes = ["hang"] if lab.quick else ["ok", "slow", "401", "500", "hang", "close", "die", "late 500", "no key"]
    # A home without keys, but with the kernels that are compiled already.
    caches = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    delays = {}
    offline = lab.launch(lab.folder("wandb-offline", ready=RUN), RUN, "tracking.wandb=offline").seconds
    for mode in modes:
        server = Server(mode)
        pid = fork()
        if pid == 0:
            server.serve_forever()
        server.server_close()
        try:
            folder = lab.folder(f"wandb-{mode}".replace(" ", "-"), ready=RUN)
            environment = {
                "HOME": str(folder),
                "XDG_CACHE_HOME": caches,
                "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
                **({} if mode == "no key" else {"WANDB_API_KEY": "0" * 40}),
            }
            outcome = lab.launch(folder, RUN, "tracking.wandb=auto", environment=environment, prepare=short_timeouts)
        finally:
            os.kill(pid, signal.SIGKILL)
            wait(pid, float("inf"))
        expect(outcome, 0)
        told = sum(map(outcome.text.count, ("cannot be reached", "could not take all", "does not answer")))
        hints = outcome.text.count("mini_llm sync")
        # What a slow server takes within the time at the end depends on the machine.
        warned, hinted = {"ok": (0, 0), "no key": (0, 1), "slow": (told, told)}.get(mode, (1, 1))
        check((told, hints) == (warned, hinted) and told < 2, f"{mode}: {told}, {hints}: {outcome.text[-800:]}")
        lab.compare(folder, RUN)
        delays[mode] = outcome.seconds - offline
        check(delays[mode] < MOST_DELAY, f"{mode}: {delays[mode]:.0f} s longer than offline")
    seen = ", ".join(f"{mode} {seconds:+.1f} s" for mode, seconds in delays.items())
    return Seen(f"exit 0, 0 bytes differ; beside offline ({offline:.1f} s): {seen}")


def short_timeouts() -> None:
    import mini_llm.engine.tracking.wandb_mirror as mirror

    mirror.INIT_TIMEOUT = mirror.FINISH_TIMEOUT = SECONDS


@fault(33, "a run with W&B is killed and resumed", "one run id, each step once in metrics.jsonl")
def killed_with_wandb(lab: Lab) -> Seen:
    folder = lab.folder("wandb", ready=RUN)
    offline = "tracking.wandb=offline"
    # W&B starts in parallel with training. Let the training wait for it before the kill.
    pid, started = lab.start(folder, RUN, offline, environment={"LLM_FAULT": "step::8=sleep"}), time.monotonic()
    run = folder / "runs" / RUN
    while not list(run.glob("wandb/offline-run-*/*.wandb")) and wait(pid, time.monotonic() + 0.05) is None:
        pass
    os.kill(pid, signal.SIGKILL)
    lab.join(pid, folder, RUN, started)
    first = json.loads((run / "wandb.json").read_text())["id"]
    # W&B names the directory of a launch by its start time in seconds.
    time.sleep(1)
    lab.finish(folder, RUN, offline)
    check(json.loads((run / "wandb.json").read_text())["id"] == first, "the run id changed")
    launches = list((run / "wandb").glob(f"offline-run-*-{first}*"))
    check(len(launches) == 2, f"{len(launches)} W&B directories, expected 2")
    lab.compare(folder, RUN)
    return Seen("one run id, two W&B directories, 0 bytes differ")
