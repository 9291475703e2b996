"""The settings of a fine-tuned run, for the commands that work on a finished run with one label a text.

No torch: the help of `distil` reads settings.
"""

from pathlib import Path
from typing import Any

from mini_llm.engine.config import build_config
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory

from .data_config import DataConfig


def requested_settings(run: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings that were requested of the run, `without` these; empty for a directory that is not a run."""
    if not (run / "config.yaml").is_file():
        return {}
    tree = RunDirectory(run, main_process=False).requested()
    return {key: value for key, value in tree.items() if key not in without}


def data_of_run(run: Path) -> DataConfig:
    """The labelled data of a finished run with one label a text. Raises ConfigError for any other directory."""
    settings = requested_settings(run)
    if "data" not in settings:
        raise ConfigError(
            f"{run}: not a run of `python -m finetune`, so its labelled data are unknown. Name a directory like "
            "runs/gpt-classifier"
        )
    from .tasks.registry import model_task

    check_single_label(model_task(run), str(run))
    return build_config(DataConfig, settings["data"], str(run))


def check_single_label(task: str, name: str) -> None:
    """Raise ConfigError for a task that these commands do not know; `name` is what it is the task of."""
    from .tasks.registry import SINGLE_LABEL

    if task != SINGLE_LABEL:
        raise ConfigError(f"{name}: task={task}; this command is for task={SINGLE_LABEL} (one label a text) only")
