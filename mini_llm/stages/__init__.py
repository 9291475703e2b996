"""The stages by name, in a checkout and in an installation.

In a checkout they are the folders tokenizer/, pretrain/, finetune/, generate/ and scoring/ beside mini_llm/, and run as
`python -m pretrain`. The build maps those folders to mini_llm.stages.pretrain and so on (pyproject.toml), so that an
installation adds one name, mini_llm, to the top of site-packages. Imports inside a stage are relative, so both layouts
run the same files. A stage never imports another stage: it loads one here, as the command line does.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

STAGES = ("tokenizer", "pretrain", "finetune", "generate", "scoring")
INSTALLED = find_spec(f"{__name__}.{STAGES[0]}") is not None
_PACKAGE = Path(__file__).parents[1]
# The folder of YAML files for models and runs.
CONFIGS = (_PACKAGE if INSTALLED else _PACKAGE.parent) / "configs"
_COMMANDS = re.compile(rf"(?:\S*/)?\bpython[\d.]* -m (?:mini_llm\b ?|(?=(?:{'|'.join(STAGES)})\b))")
_TARGETS = re.compile(r"`make (pretrain|report)`")


def module_name(stage: str) -> str:
    """What `python -m` and launchers call a stage: 'pretrain', or 'mini_llm.stages.pretrain' once installed."""
    return f"{__name__}.{stage}" if INSTALLED else stage


def load(stage: str, module: str) -> ModuleType:
    """A module of a stage: load("tokenizer", "train")."""
    return import_module(f"{module_name(stage)}.{module}")


def local_commands(text: str) -> str:
    """`text` with its commands as they are typed here: 'python -m pretrain', or 'mini-llm pretrain' once installed."""
    return _TARGETS.sub(r"`mini-llm \1`", _COMMANDS.sub("mini-llm ", text)) if INSTALLED else text
