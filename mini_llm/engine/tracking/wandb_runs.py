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


def stable_id(directory: Path, project: str, group: str = "") -> str:
    """The W&B run id of a run directory, kept in wandb.json together with its project and group.

    A new one is WANDB_RUN_ID, unless it belongs to another run here, or random.
    """
    run_id = stored_id(directory)
    if not run_id:
        given = variable("WANDB_RUN_ID") if is_owner(directory) else ""
        taken = bool(given) and given in {stored_id(path.parent) for path in directory.parent.glob("*/wandb.json")}
        run_id = random_id() if taken or not given else given
    identity = {"id": run_id, "project": project, "group": group}
    if _stored(directory) != identity:
        write_json(directory / "wandb.json", identity)
    return run_id


def run_of(model: Path) -> Path:
    """The run directory of a model directory; the directory itself where it is in no run."""
    model = model.resolve()
    return model.parent if model.name == "model" and (model.parent / "config.yaml").is_file() else model


def default_group(directory: Path, start: Path | None) -> str:
    """The W&B group of a run without tracking.group, so that the stages of one model share a group.

    It is the group that the run has, or else that of the run whose model it starts from, or else the name of the run
    that the command line is for: a stage may train what it needs first.
    """
    if group := str(_stored(directory).get("group") or ""):
        return group
    if start is not None:
        run = run_of(start)
        return str(_stored(run).get("group") or run.name)
    return variable(OWNER) or directory.name


def random_id() -> str:
    """A new W&B run id."""
    # `secrets`, because the state of the `random` module belongs to the training.
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def stored_id(directory: Path) -> str:
    """The W&B run id in wandb.json; "" without a valid one."""
    found = str(_stored(directory).get("id", ""))
    return found if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found) else ""


def _stored(directory: Path) -> dict[str, Any]:
    stored = read_json(directory / "wandb.json")
    return stored if isinstance(stored, dict) else {}


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
