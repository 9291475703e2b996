"""H2: the order of fsync and rename. B1 to B5: broken savers and readers that the campaign must catch."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chaos import broken
from chaos.damage import flip, flip_every_file
from chaos.kills import ROOT, at_every_event
from chaos.lab import COMMANDS, Lab
from chaos.registry import Differs, NotHere, Seen, check, fault

# An event: ("write" | "sync", path) or ("rename", source, target).
Event = tuple[str, ...]
CAUGHT = "the campaign catches it"


def check_order(events: list[Event], root: Path) -> int:
    """The number of directories renamed into place below `root`.

    Raises Differs unless the files of each directory were written, then synced, the directory renamed, and its parent
    synced, in this order.
    """
    renamed = 0
    for i, event in enumerate(events):
        if event[0] != "rename" or not event[1].startswith(str(root)):
            continue
        source, target = Path(event[1]), Path(event[2])
        if not source.name.startswith(".tmp-"):
            continue
        # Renaming a file within the directory counts as writing it.
        before = [(kind, paths[-1]) for kind, *paths in events[:i]]
        inside = [("sync" if kind == "sync" else "write", path) for kind, path in before]
        moved = {event[1] for event in events[:i] if event[0] == "rename"}
        inside = [pair for pair in inside if pair[1].startswith(f"{source}/") and pair[1] not in moved]
        written = {path for kind, path in inside if kind == "write"}
        for path in written:
            last = max(n for n, found in enumerate(inside) if found == ("write", path))
            synced = ("sync", path) in inside[last:]
            check(synced, f"{target.name}: {Path(path).relative_to(source)} was not synced before the rename")
        check(written, f"{target.name}: nothing was written into it")
        after = events[i + 1 :]
        until = next((n for n, later in enumerate(after) if later[0] == "rename"), len(after))
        check(
            ("sync", str(target.parent)) in after[:until], f"{target.name}: its parent was not synced after the rename"
        )
        renamed += 1
    check(renamed >= 2, f"only {renamed} directories were renamed into place")
    return renamed


def record_order(log: Path) -> None:
    """Make this process write every fsync and rename to `log`."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    fsync, rename, write = os.fsync, os.rename, os.write

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        write(handle, f"sync\t{os.readlink(f'/proc/self/fd/{descriptor}')}\n".encode())

    def recorded(source: Path, target: Path) -> None:
        write(handle, f"rename\t{Path(source).absolute()}\t{Path(target).absolute()}\n".encode())
        rename(source, target)

    os.fsync, os.rename = sync, recorded


def recorded_events(lab: Lab, prepare: Callable[[], None] | None) -> tuple[list[Event], Path]:
    """Events of one run as Python calls them, and the directory they concern. Writes are placed at the start."""
    folder = lab.folder("order", ready="gpt")
    log = folder / "order.txt"

    def both() -> None:
        record_order(log)
        if prepare is not None:
            prepare()

    lab.launch(folder, "gpt", prepare=both)
    events: list[Event] = [tuple(line.split("\t")) for line in log.read_text().splitlines()]
    named = sorted(path for path in (folder / "runs/gpt/checkpoints").rglob("*") if path.is_file())
    for path in named:
        # Use the name that the file had while it was written.
        top = path.relative_to(folder / "runs/gpt/checkpoints").parts[0]
        for event in list(events):
            if event[0] == "rename" and Path(event[2]).name == top:
                inside = path.relative_to(folder / "runs/gpt/checkpoints" / top)
                events.insert(0, ("write", f"{event[1]}/{inside}"))
    kept = {path.relative_to(folder / "runs/gpt/checkpoints").parts[0] for path in named}
    return [e for e in events if e[0] != "rename" or Path(e[2]).name in kept], folder / "runs/gpt/checkpoints"


@fault("H2a", "order of fsync and rename as called by Python", "files synced, directory renamed, parent synced")
def order(lab: Lab) -> Seen:
    events, root = recorded_events(lab, None)
    return Seen(f"{check_order(events, root)} directories, correct order")


@fault("H2b", "order of fsync and rename as system calls (strace)", "files synced, directory renamed, parent synced")
def order_of_system_calls(lab: Lab) -> Seen:
    if shutil.which("strace") is None:
        raise NotHere("needs strace (apt-get install strace)")
    folder = lab.folder("strace", ready="gpt")
    log = folder / "strace.txt"
    stage, arguments = COMMANDS["gpt"]
    calls = "trace=openat,fsync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-s", "4096", "-e", calls, "-o", str(log), sys.executable, "-m", stage, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    if result.returncode and "ptrace" in result.stderr:
        raise NotHere("strace is not permitted to trace")
    check(result.returncode == 0, result.stderr[-500:])
    return Seen(
        f"{check_order(traced_events(log.read_text(), folder), folder / 'runs/gpt')} directories, correct order"
    )


def traced_events(text: str, folder: Path) -> list[Event]:
    """The events in an strace log with paths (-y)."""
    events: list[Event] = []
    for line in text.splitlines():
        # Skip failed calls. A call interrupted by another thread is logged as "unfinished", with its arguments.
        if " = -1 " in line:
            continue
        if match := re.search(r"fsync\(\d+<([^>]*)>", line):
            events.append(("sync", match[1]))
        elif match := re.search(r'rename\w*\((?:\w+(?:<[^>]*>)?, )?"([^"]+)", (?:\w+(?:<[^>]*>)?, )?"([^"]+)"', line):
            events.append(("rename", str(folder / match[1]), str(folder / match[2])))
        elif match := re.search(r'openat\([^"]*"([^"]+)", \S*O_(?:WRONLY|RDWR)', line):
            events.append(("write", str(folder / match[1])))
    return events


def caught(lab: Lab, attempt: Callable[[], object]) -> Seen:
    try:
        attempt()
    except Differs as error:
        return Seen(f"caught: {str(error)[:160]}")
    raise Differs("the broken saver was not caught")


def _kills(lab: Lab, saver: Callable[[], None]) -> Seen:
    return caught(lab, lambda: at_every_event(lab, "gpt", True, 24, prepare=saver))


@fault("B1", "broken saver: overwrites one checkpoint in place", CAUGHT)
def in_place(lab: Lab) -> Seen:
    return _kills(lab, broken.in_place)


@fault("B2", "broken saver: deletes before it writes", CAUGHT)
def delete_before_write(lab: Lab) -> Seen:
    return _kills(lab, broken.delete_before_write)


@fault("B3", "broken saver: publishes the directory before its data, reader does not check", CAUGHT)
def name_before_data(lab: Lab) -> Seen:
    return _kills(lab, broken.name_before_data)


@fault("B4", "broken saver: no fsync before the rename", CAUGHT)
def no_sync(lab: Lab) -> Seen:
    return caught(lab, lambda: check_order(*recorded_events(lab, broken.no_sync)))


@fault("B5", "broken reader: verifies no hash", CAUGHT)
def no_check(lab: Lab) -> Seen:
    return caught(lab, partial(flip_every_file, lab, flip, prepare=broken.no_check))
