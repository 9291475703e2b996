"""DistilConfig: the settings of a distillation, which are those of the teacher's run and the student's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mini_llm.engine.config import Config, flag_overrides, load_config, split_arguments
from mini_llm.engine.errors import ConfigError

from ..config import FinetuneConfig
from ..requested import requested_settings

# A distillation takes all settings from the teacher's run, except these.
OWN = ("run", "model", "weights", "teacher", "epochs", "max_steps", "student", "continued_pretraining")


class StudentConfig(Config):
    """Size of the student, and how it learns."""

    share: float = Field(
        1 / 3, gt=0, le=1, description="Parameters of the student, at most, as a share of the teacher."
    )
    layers: int | None = Field(None, ge=1, description="Layers; null: half of the teacher's, rounded up.")
    hidden_size: int | None = Field(None, ge=1, description="Width; null: the largest that student.share allows.")
    temperature: float = Field(
        2.0, gt=0, description="Divides the logits of teacher and student in training; above 1, small ones count more."
    )


class DistilConfig(FinetuneConfig):
    """Settings of one distillation. `model` is the teacher."""

    student: StudentConfig = Field(StudentConfig(), description="Size of the student, and how it learns.")
    epochs: float = Field(20.0, gt=0, description="Passes over the training and unlabelled texts, at most.")

    @property
    def run_name(self) -> str:
        source = Path(self.model)
        return self.run or f"{(source.parent if source.name == 'model' else source).name}-distilled"


def read_distil_config(teacher: Path, arguments: list[str], flags: Mapping[str, Any]) -> DistilConfig:
    """The settings of the teacher's run, then the YAML file, the flags and key=value. Raises ConfigError."""
    path, overrides = split_arguments(arguments)
    if path is not None:
        raise ConfigError(f"{path}: a distillation takes its settings from the teacher's run; give others as key=value")
    base = [*as_overrides(requested_settings(teacher, OWN)), ("model", str(teacher)), ("teacher", "none")]
    return load_config(DistilConfig, None, [*base, *flag_overrides(flags), *overrides])


def as_overrides(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key.sub, value) for every value of a tree."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
