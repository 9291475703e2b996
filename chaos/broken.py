"""Savers that each violate one guarantee. The campaign must catch them, otherwise it proves nothing.

Each function is called in a child before its command and replaces a part of the engine in that process.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_llm.engine.checkpoint import format, resume
from mini_llm.engine.run import files


def in_place() -> None:
    """Overwrite a single checkpoint in place: while it is being written, no complete checkpoint exists."""

    @contextmanager
    def publish(target: Path) -> Iterator[Path]:
        kind = target.name.partition("-")[0]
        old = sorted(target.parent.glob(f"{kind}-*")) if target.parent.is_dir() else []
        if old:
            os.rename(old[-1], target)
        target.mkdir(parents=True, exist_ok=True)
        for path in target.rglob("manifest.json"):
            path.unlink()
        yield target

    format.atomic_directory = publish


def delete_before_write() -> None:
    """Delete the old checkpoints before the new one is written."""
    correct = format.atomic_directory

    @contextmanager
    def publish(target: Path) -> Iterator[Path]:
        if target.name.startswith("step-"):
            for old in target.parent.glob("step-*"):
                shutil.rmtree(old)
        with correct(target) as directory:
            yield directory

    format.atomic_directory = publish


def name_before_data() -> None:
    """Create the directory under its final name before its files; the reader takes the highest number unchecked."""

    @contextmanager
    def publish(target: Path) -> Iterator[Path]:
        target.mkdir(parents=True, exist_ok=True)
        yield target

    format.atomic_directory = publish
    format.find_damage = lambda directory: None


def no_sync() -> None:
    """Never call fsync: after a power failure a file may have a name but no content."""
    files._sync = lambda path: None


def no_check() -> None:
    """Do not verify hashes on reading."""
    format.find_damage = lambda directory: None
    format.damage_of_best = lambda root, step: None
    resume.damage_of_best = lambda root, step: None
