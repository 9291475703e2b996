"""Names of architectures, and the files of configs/model/ that define them. Imports no torch."""

import difflib
from pathlib import Path

from mini_llm.engine.errors import ConfigError
from mini_llm.stages import CONFIGS

PRESETS = CONFIGS / "model"
ALIASES = {"gpt": "qwen3", "mlm": "modernbert"}


def preset_names() -> list[str]:
    """gpt, mlm, and the files of configs/model/."""
    return [*ALIASES, *sorted(path.stem for path in PRESETS.glob("*.yaml"))]


def preset_path(model: str) -> Path:
    """The YAML file of `model`: gpt, mlm, a preset, or the path itself. Raises ConfigError listing the known names."""
    if model.endswith((".yaml", ".yml")):
        return Path(model)
    if model not in preset_names():
        near = difflib.get_close_matches(model, preset_names(), 1)
        raise ConfigError(
            f"unknown model '{model}'{f', did you mean {near[0]}?' if near else ''}; "
            f"known are {', '.join(preset_names())}, and paths to YAML files like configs/model/t5.yaml"
        )
    return PRESETS / f"{ALIASES.get(model, model)}.yaml"
