"""Which run of Weights & Biases a run directory is, and the environment variables of W&B that apply to it."""

import os
import re
import secrets
import string
from pathlib import Path
from typing import Any, TypeVar

from mini_llm.engine.run.files import read_json, write_json

# The name of the run that WANDB_RUN_ID and WANDB_SWEEP_ID are for, set by command lines. A stage that trains what it
# needs first, such as a tokenizer, has a run of its own for that.
OWNER = "MINI_LLM_WANDB_RUN"
_ONE_RUN = ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")

C = TypeVar("C")


def variable(name: str) -> str:
    """An environment variable; an empty one counts as unset."""
    return os.environ.get(name, "").strip()


def run_of_its_own(config: C, name: str, named: bool) -> C:
    """`config` with another name of the run than `name` where W&B asks for a run of its own.

    In a sweep each trial gets WANDB_RUN_ID behind its name. So does a run that nobody has named, if WANDB_RUN_ID is
    set. `config` is a pydantic model with the field `run`; `named`: the user has chosen `name`.
    """
    suffix = re.sub(r"[^\w.+-]+", "-", variable("WANDB_RUN_ID"))
    if suffix and (variable("WANDB_SWEEP_ID") or not named):
        name = f"{name}-{suffix}"
        model: Any = config
        config = model.model_copy(update={"run": name})
    os.environ[OWNER] = name
    return config


def is_owner(directory: Path) -> bool:
    """Return whether WANDB_RUN_ID and WANDB_SWEEP_ID are meant for this run directory."""
    return variable(OWNER) in ("", directory.name)


def stable_id(directory: Path, project: str) -> str:
    """The W&B run id of a run directory, kept in wandb.json.

    A new one is WANDB_RUN_ID, unless it belongs to another run here, or random.
    """
    stored = _stored_id(directory)
    if stored:
        return stored
    given = variable("WANDB_RUN_ID") if is_owner(directory) else ""
    taken = bool(given) and given in {_stored_id(path.parent) for path in directory.parent.glob("*/wandb.json")}
    run_id = random_id() if taken or not given else given
    write_json(directory / "wandb.json", {"id": run_id, "project": project})
    return run_id


def random_id() -> str:
    """A new W&B run id."""
    # `secrets`, because the state of the `random` module belongs to the training.
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def _stored_id(directory: Path) -> str:
    stored = read_json(directory / "wandb.json")
    found = str(stored.get("id", "")) if isinstance(stored, dict) else ""
    return found if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else ""


def set_variables(directory: Path, owner: bool) -> dict[str, str | None]:
    """Set the environment variables that W&B reads, for a run in `directory`; returns the values to restore.

    W&B refuses empty values, and modes in capitals. Its files stay inside the run, and it sends no crash reports.
    """
    wanted: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith("WANDB_") and not variable(name)
    }
    # The mode is an argument of wandb.init.
    wanted |= dict.fromkeys(("WANDB_MODE", *(() if owner else _ONE_RUN)))
    defaults = {
        "WANDB_CACHE_DIR": str(directory / "wandb" / "cache"),
        "WANDB_DATA_DIR": str(directory / "wandb" / "data"),
        "WANDB_ERROR_REPORTING": "false",
    }
    wanted |= {name: value for name, value in defaults.items() if not variable(name)}
    before = {name: os.environ.get(name) for name in wanted}
    restore_variables(wanted)
    return before


def restore_variables(values: dict[str, str | None]) -> None:
    """Set environment variables; None removes one."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
