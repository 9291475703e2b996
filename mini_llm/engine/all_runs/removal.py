"""`python -m mini_llm runs rm RUN...`: delete runs, but none that a process works on."""

import shutil
from pathlib import Path

import typer
from filelock import FileLock, Timeout

from mini_llm.engine.all_runs.lineage import children
from mini_llm.engine.all_runs.table import folder_size, human_size
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.files import read_json
from mini_llm.engine.run.liveness import is_live


def remove_runs(paths: list[Path], yes: bool) -> None:
    """Delete the directories `paths` once the user agrees, or at once with `yes`.

    Raises ConfigError, before anything is deleted, when one of them is alive or a symbolic link.
    """
    paths = list(dict.fromkeys(paths))
    for path in paths:
        refuse_live(path)
    print("\n".join(f"{path}  {human_size(folder_size(path))}{_used_by(path, paths)}" for path in paths))
    if not yes and not typer.confirm(f"Delete {'this run' if len(paths) == 1 else f'these {len(paths)} runs'}?"):
        raise ConfigError("nothing was deleted")
    for path in paths:
        _remove(path)
        print(f"deleted {path}")


def refuse_live(path: Path) -> None:
    """Raise ConfigError when a process works on the run, or when its directory is a link."""
    if path.is_symlink():
        raise ConfigError(f"{path}: a symbolic link to {path.resolve()}; name that directory, or remove the link")
    if is_live(path):
        owner = read_json(path / "lock.json")
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}" if isinstance(owner, dict) else "a process"
        raise ConfigError(
            f"{path}: alive ({who}), so it is not deleted. Stop it first. If that machine is gone, remove "
            f"{path / 'lock.json'} and try again"
        )


def _remove(path: Path) -> None:
    # The lock keeps a run from starting here while its files disappear.
    lock = FileLock(path / ".lock", timeout=0)
    try:
        with lock:
            refuse_live(path)
            shutil.rmtree(path)
    except Timeout:
        raise ConfigError(f"{path}: a process has just begun to use it, so it is not deleted") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be deleted completely ({error.strerror}: {error.filename})") from None


def _used_by(path: Path, removed: list[Path]) -> str:
    users = [run.name for run in children(path) if run not in removed]
    return f"  (other runs were made from it: {', '.join(users)})" if users else ""
