"""The four stages by name.

In a checkout they are the folders tokenizer/, pretrain/, finetune/ and generate/ beside mini_llm/, and run as
`python -m pretrain`. The build maps those folders to mini_llm.stages.pretrain and so on (pyproject.toml), so that an
installation puts one name, mini_llm, at the top of site-packages. Inside a stage imports are relative, and so the same
in both. A stage never imports another: it loads it here, as a user starts it from the command line.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

STAGES = ("tokenizer", "pretrain", "finetune", "generate")
INSTALLED = find_spec(f"{__name__}.{STAGES[0]}") is not None
_PACKAGE = Path(__file__).parents[1]
# YAML files of models and runs.
CONFIGS = (_PACKAGE if INSTALLED else _PACKAGE.parent) / "configs"


def module_name(stage: str) -> str:
    """What `python -m` and launchers call a stage: 'pretrain', or 'mini_llm.stages.pretrain' once installed."""
    return f"{__name__}.{stage}" if INSTALLED else stage


def load(stage: str, module: str) -> ModuleType:
    """A module of a stage: load("tokenizer", "train")."""
    return import_module(f"{module_name(stage)}.{module}")
