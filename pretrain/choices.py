"""choices.json: the choices of a plan that depend on the measured speed of the machine; a resumed run keeps them."""

import os
from dataclasses import asdict

import torch
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError

from mini_llm.engine.config import read_yaml
from mini_llm.engine.device import default_device
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.state import read_state, say
from mini_llm.engine.settings import Attention

from .config import ModelSizes, PretrainConfig
from .plan.sizes import Plan
from .plan.speed import Speed

FILE = "choices.json"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings", "max_position_embeddings")
# Keys of runtime.
WAY = ("threads", "logit_rows", "attention", "compile")


class Choices(BaseModel):
    """The content of choices.json. The last six are None for runs of earlier releases, and where the default was used.

    place: ranks and device. flops_per_second: the speed of a rank that the plan was made for.
    """

    sizes: ModelSizes
    global_batch_size: PositiveInt
    compile: bool
    micro_batch_size: PositiveInt | None = None
    threads: PositiveInt | None = None
    logit_rows: PositiveInt | None = None
    attention: Attention | None = None
    place: str | None = None
    flops_per_second: PositiveFloat | None = None

    @property
    def speed(self) -> Speed | None:
        """The speed that the plan was made for, whatever the width."""
        return self.flops_per_second and Speed([(1, self.flops_per_second)], "as at the first launch")


def write_choices(run: RunDirectory, config: PretrainConfig, plan: Plan) -> None:
    """Write choices.json."""
    sizes = {name: getattr(plan.config, name) for name in SIZES[:-1]} | {SIZES[-1]: plan.length}
    content = {"sizes": sizes, "global_batch_size": plan.global_batch_size, **asdict(plan.way)}
    speed = {"place": place(config), "flops_per_second": plan.flops_per_second}
    write_json(run.path / FILE, {**content, **speed})


def place(config: PretrainConfig) -> str:
    """Ranks and device, for which the way to compute a step was chosen."""
    return f"{os.environ.get('WORLD_SIZE', 1)} x {default_device(config.runtime.device).type}"


def read_choices(run: RunDirectory) -> Choices | None:
    """The choices of the run's first launch, if that has left a checkpoint."""
    if not any(run.checkpoints.glob("step-*")):
        return None
    return read_state(run.path / FILE, Choices, aside=run.main_process) or _from_config(run)


def with_choices(config: PretrainConfig, chosen: Choices | None) -> PretrainConfig:
    """`config` with the choices of an earlier launch where it leaves them open."""
    if chosen is None:
        return config
    runtime, changes = config.runtime, {}
    here = chosen.place in (None, place(config))
    for name in WAY if here else ("compile",):
        if getattr(runtime, name) in (None, "auto") and (value := getattr(chosen, name)) is not None:
            # Another machine may have fewer cores.
            changes[name] = min(value, torch.get_num_threads()) if name == "threads" else value
    batch, rows = config.global_batch_size or chosen.global_batch_size, config.micro_batch_size
    if rows is None and here and batch == chosen.global_batch_size:
        share = batch // int(os.environ.get("WORLD_SIZE", 1))
        rows = chosen.micro_batch_size if chosen.micro_batch_size and share % chosen.micro_batch_size == 0 else None
    runtime = runtime.model_copy(update=changes)
    config = config.model_copy(update={"global_batch_size": batch, "micro_batch_size": rows, "runtime": runtime})
    if config.init:
        # It sets the sizes.
        return config
    given = config.sizes.model_dump(exclude_none=True)
    sizes = config.sizes.model_copy(update={**chosen.sizes.model_dump(exclude_unset=True), **given})
    return config.model_copy(update={"sizes": sizes})


def _from_config(run: RunDirectory) -> Choices | None:
    """The choices from config.yaml, which holds them beside all other settings, where choices.json is damaged."""
    path = run.path / "config.yaml"
    try:
        used = read_yaml(path)
        sizes, runtime = {name: used["sizes"][name] for name in SIZES}, used["runtime"]
        way = {name: runtime.get(name) for name in WAY}
        found = Choices.model_validate({**used, **way, "sizes": sizes})
    except (ConfigError, KeyError, TypeError, ValidationError):
        return None
    say(f"{run.path}: the choices of the first launch are those in {path.name}")
    return found
