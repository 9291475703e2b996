"""Savers that break the contract, each in one way: a campaign that does not find them proves nothing.

Each function is called in a child before its command and replaces a part of the engine there.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mini_llm.engine.checkpoint import format, resume
from mini_llm.engine.run import files


def in_place() -> None:
    """One checkpoint, written over: while the new one is written there is none."""

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
    """Room is made for the new checkpoint first."""
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
    """The directory gets its name first and its files afterwards; the reader takes what has the highest number."""

    @contextmanager
    def publish(target: Path) -> Iterator[Path]:
        target.mkdir(parents=True, exist_ok=True)
        yield target

    format.atomic_directory = publish
    format.find_damage = lambda directory: None


def no_sync() -> None:
    """Nothing waits for the disk: after a power cut a name may have no content."""
    files._sync = lambda path: None


def no_check() -> None:
    """The reader does not look at hashes."""
    format.find_damage = lambda directory: None
    format.damage_of_best = lambda root, step: None
    resume.damage_of_best = lambda root, step: None
