"""Fixtures that several files of this room use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def teacher_run(tiny_tokenizer, tmp_path_factory) -> Path:
    """A finished run of a tiny classifier; tests do not change it."""
    from tests.finetune.tiny_classifier import train_tiny_classifier

    return train_tiny_classifier(tmp_path_factory.mktemp("tiny"), tiny_tokenizer)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the finished run are slow, since one of them trains it."""
    for item in items:
        if "teacher_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
