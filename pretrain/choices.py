"""choices.json: the choices of a plan that depend on the measured speed of the machine; a resumed run keeps them."""

from pydantic import BaseModel, PositiveInt, ValidationError

from mini_llm.engine.config import read_yaml
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.state import read_state, say

from .config import ModelSizes, PretrainConfig
from .plan.sizes import Plan

FILE = "choices.json"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings", "max_position_embeddings")


class Choices(BaseModel):
    """The content of choices.json."""

    sizes: ModelSizes
    global_batch_size: PositiveInt
    compile: bool


def write_choices(run: RunDirectory, plan: Plan) -> None:
    """Write choices.json."""
    sizes = {name: getattr(plan.config, name) for name in SIZES[:-1]} | {SIZES[-1]: plan.length}
    content = {"sizes": sizes, "global_batch_size": plan.global_batch_size, "compile": plan.compile}
    write_json(run.path / FILE, content)


def with_choices(config: PretrainConfig, run: RunDirectory) -> PretrainConfig:
    """`config` with the choices of the run's first launch, if that has left a checkpoint."""
    if config.init or not any(run.checkpoints.glob("step-*")):
        return config
    chosen = read_state(run.path / FILE, Choices, aside=run.main_process) or _from_config(run)
    if chosen is None:
        return config
    given = config.sizes.model_dump(exclude_none=True)
    sizes = config.sizes.model_copy(update={**chosen.sizes.model_dump(exclude_unset=True), **given})
    batch = config.global_batch_size or chosen.global_batch_size
    runtime = config.runtime
    if runtime.compile == "auto":
        runtime = runtime.model_copy(update={"compile": chosen.compile})
    return config.model_copy(update={"sizes": sizes, "global_batch_size": batch, "runtime": runtime})


def _from_config(run: RunDirectory) -> Choices | None:
    """The choices from config.yaml, which holds them beside all other settings, where choices.json is damaged."""
    path = run.path / "config.yaml"
    try:
        used = read_yaml(path)
        sizes = {name: used["sizes"][name] for name in SIZES}
        found = Choices.model_validate({**used, "sizes": sizes, "compile": used["runtime"]["compile"]})
    except (ConfigError, KeyError, TypeError, ValidationError):
        return None
    say(f"{run.path}: the choices of the first launch are those in {path.name}")
    return found
