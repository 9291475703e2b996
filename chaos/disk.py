"""Faults 15 to 18, 31: full disk, read-only directories, another live run, out of memory."""

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

from chaos.damage import unfinished
from chaos.kills import check_no_leftovers
from chaos.lab import Lab, check_nothing_lost, final_bytes, saved_step
from chaos.registry import NotHere, Seen, check, expect, fault

RUN = "gpt"
CLONE_NEWNS = 0x20000


def own_mounts() -> None:
    """Give this process its own mount namespace. Raises NotHere where that is not permitted."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(CLONE_NEWNS):
        raise NotHere(f"needs permission to mount ({os.strerror(ctypes.get_errno())})")
    subprocess.run(["mount", "--make-rprivate", "/"], check=False, capture_output=True)


def mount(directory: Path, size: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory))


def _mount(*arguments: str) -> None:
    result = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if result.returncode:
        raise NotHere(f"needs permission to mount ({result.stderr.strip()})")


@fault(15, "disk full during a save, many disk sizes", "warning, training continues; exit 4 if the last save fails")
def full_disk(lab: Lab) -> Seen:
    """Mounts a tmpfs at checkpoints/, with sizes from too small to large enough."""
    reference = lab.reference(RUN) / "runs" / RUN / "checkpoints"
    whole = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    count = 3 if lab.quick else 16
    sizes = [round(whole * (i + 0.5) / count * 3) for i in range(count)]

    def one(size: int) -> str:
        try:
            own_mounts()
            folder = lab.folder(f"full-{size}", ready=RUN)
            run = folder / "runs" / RUN
            # A run directory is recognized by its files.
            run.mkdir(parents=True)
            (run / "command.txt").touch()
            mount(run / "checkpoints", size)
        except NotHere as error:
            return str(error)
        outcome = lab.launch(folder, RUN)
        said = outcome.text.count("could not be saved")
        saved = saved_step(run)
        check_no_leftovers(run)
        if outcome.code:
            expect(outcome, 4, "could not be saved", "No space left", "make room")
        check("Traceback" not in outcome.text, outcome.text[-500:])
        _mount("-o", "remount,size=64m", str(run / "checkpoints"))
        lab.finish(folder, RUN)
        lab.compare(folder, RUN)
        subprocess.run(["umount", str(run / "checkpoints")], check=True)
        return f"exit {outcome.code}, {said} warnings, step {saved} saved"

    found = lab.share(sizes, one)
    if any(text.startswith("needs") for text in found):
        raise NotHere(found[0])
    codes = [text.split(",")[0] for text in found]
    check({"exit 0", "exit 4"} <= set(codes), f"all sizes have the same outcome: {found}")
    return Seen(f"{len(sizes)} sizes: {codes.count('exit 4')} with exit 4, all resumed, 0 bytes differ")


@fault("15b", "not enough disk space at the start", "exit 2 with the sizes, before any training")
def no_room(lab: Lab) -> Seen:
    def one(_: int) -> str:
        try:
            own_mounts()
            folder = lab.folder("room", ready=RUN)
            mount(folder / "runs" / RUN, 1 << 20)
        except NotHere as error:
            return str(error)
        outcome = lab.launch(folder, RUN)
        expect(outcome, 2, "not enough disk space", "keep_last=2", "MB")
        subprocess.run(["umount", str(folder / "runs" / RUN)], check=True)
        return ""

    if reason := lab.share([0], one)[0]:
        raise NotHere(reason)
    return Seen("exit 2, needed and free space are named")


@fault(16, "disk full for metrics", "one warning, same model")
def no_room_for_metrics(lab: Lab) -> Seen:
    folder = lab.folder("metrics", ready=RUN)

    def prepare() -> None:
        write = os.write

        def full(handle: int, data: bytes) -> int:
            if os.readlink(f"/proc/self/fd/{handle}").endswith(".jsonl"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(handle, data)

        os.write = full

    outcome = lab.launch(folder, RUN, prepare=prepare)
    expect(outcome, 0)
    check(outcome.text.count("record of the run is incomplete") == 1, outcome.text[-500:])
    expected, found = (final_bytes(path / "runs" / RUN) for path in (lab.reference(RUN), folder))
    different = [name for name in expected if name != "metrics.jsonl" and expected[name] != found.get(name)]
    check(not different, f"{different} differ")
    return Seen("1 warning, exit 0, same model and checkpoints")


def obey_permissions() -> None:
    """Drop the two capabilities that let root ignore file permissions. Raises OSError if that fails."""
    if os.getuid():
        return
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    # Two groups of (effective, permitted, inheritable), for 64 capabilities.
    data = (ctypes.c_uint32 * 6)()
    if library.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    dac_override, dac_read_search = 1 << 1, 1 << 2
    for i in range(3):
        data[i] &= ~(dac_override | dac_read_search)
    if library.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


@fault(17, "working folder, run or checkpoints read-only", "exit 2 at the start, exit 4 at a save, path named")
def read_only(lab: Lab) -> Seen:
    folder = lab.folder("readonly")
    folder.chmod(0o555)
    expect(lab.launch(folder, RUN, prepare=obey_permissions), 2, "runs", "cannot write there")
    folder = unfinished(lab, "readonly")
    (folder / "runs" / RUN).chmod(0o555)
    expect(lab.launch(folder, RUN, prepare=obey_permissions), 2, f"runs/{RUN}", "cannot write there")
    folder = lab.folder("readonly", ready=RUN)
    checkpoints = folder / "runs" / RUN / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints.parent / "command.txt").touch()
    checkpoints.chmod(0o555)
    outcome = lab.launch(folder, RUN, prepare=obey_permissions)
    expect(outcome, 4, "could not be saved", "Permission denied", "Training continues")
    for path in lab.root.iterdir():
        path.chmod(0o755)
    return Seen("exit 2, 2 and 4, directory named each time")


@fault(18, "foreign directory; another live run; stale lock of a killed run", "exit 2; exit 2; lock taken over")
def another_run(lab: Lab) -> Seen:
    folder = lab.folder("foreign", ready=RUN)
    (folder / "runs" / RUN).mkdir()
    (folder / "runs" / RUN / "thesis.txt").write_text("mine")
    expect(lab.launch(folder, RUN), 2, "contains files but is not a run directory")
    folder = lab.folder("live", ready=RUN)
    first = lab.start(folder, RUN, environment={"LLM_FAULT": "step::3=sleep"})
    lock = folder / "runs" / RUN / "lock.json"
    deadline = time.monotonic() + 60
    while not lock.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.copytree(folder, beside := folder.with_name(folder.name + "-beside"), ignore=lambda *_: {"gpt"})
    (beside / "runs" / RUN).symlink_to(folder / "runs" / RUN)
    expect(lab.launch(beside, RUN), 2, "another run is using it", str(first))
    check(lab.join(first, folder, RUN, time.monotonic()).code == 0, "the first run failed")
    lab.compare(folder, RUN)
    folder = lab.folder("stale", ready=RUN)
    lab.launch(folder, RUN, environment={"LLM_FAULT": "step::8=kill"})
    check((folder / "runs" / RUN / "lock.json").is_file(), "no lock was left")
    lab.finish(folder, RUN)
    lab.compare(folder, RUN)
    return Seen("exit 2 names the process; the stale lock was taken over")


@fault(31, "out of memory in a step", "exit 2 suggests micro_batch_size, checkpoint intact")
def no_memory(lab: Lab) -> Seen:
    folder = lab.folder("memory", ready=RUN)

    def prepare() -> None:
        from mini_llm.engine.run import fault_points as faults

        count = 0

        def limit(name: str) -> None:
            nonlocal count
            count += name == "step"
            if name == "step" and count == 8:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                most = pages * resource.getpagesize() + (4 << 20)
                resource.setrlimit(resource.RLIMIT_AS, (most, most))

        faults.listeners.append(limit)

        from mini_llm.engine import loop

        original = loop.train_step

        def hungry(*arguments: object) -> object:
            if count == 8:
                import torch

                torch.empty(1 << 30)
            return original(*arguments)

        loop.train_step = hungry

    outcome = lab.launch(folder, RUN, prepare=prepare)
    expect(outcome, 2, "out of memory", "micro_batch_size")
    lost = check_nothing_lost(folder / "runs" / RUN)
    lab.finish(folder, RUN)
    lab.compare(folder, RUN)
    return Seen("exit 2, resumed, 0 bytes differ", lost)
