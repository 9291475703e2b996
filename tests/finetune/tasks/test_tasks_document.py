"""docs/tasks.md: its Python blocks write data that its commands read."""

import re
import shlex
from pathlib import Path

import pytest

from finetune.__main__ import read_settings
from finetune.tasks.reading import read_parts
from finetune.tasks.registry import TASKS, task_name

PAGE = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text()
SECTIONS = dict(zip(TASKS, re.findall(r"^## .*?(?=^## |\Z)", PAGE, re.M | re.S), strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_examples_read_their_own_data(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", SECTIONS[task], re.S)[1], {})
    train, *others = re.search(r"```bash\n(.*?)```", SECTIONS[task], re.S)[1].splitlines()
    words = shlex.split(train.removeprefix("python -m finetune "))
    flags = {"model": words[words.index("--model") + 1], "data.path": words[words.index("--data") + 1]}
    config = read_settings([word for word in words if "=" in word], flags)
    assert task_name(config) == task
    parts = read_parts(TASKS[task](config.data))
    assert len(parts.train) > 60 and parts.validation
    assert all(config.run_name in other for other in others)


def test_the_page_has_every_task():
    rows = re.findall(r"^\| `(\w+)`", PAGE, re.M)
    assert rows == ["single_label", *TASKS]
