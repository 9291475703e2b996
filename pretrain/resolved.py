"""The configuration that a pretraining run uses: the requested one with every choice filled in."""

from typing import Any

from mini_llm.corpus.documents import HASH_FRACTION, TAIL_FRACTION
from mini_llm.engine.distributed.processes import resolved_runtime

from .choices import WAY
from .config import ModelSizes, PretrainConfig
from .data import Data
from .plan.sizes import Plan


def resolved_config(config: PretrainConfig, plan: Plan, data: Data) -> dict[str, Any]:
    """Plain values for config.yaml and W&B: sizes, vocabulary, batch sizes, steps, learning rates, precision."""
    sizes = {name: getattr(plan.config, name) for name in ModelSizes.model_fields}
    if not plan.config.is_encoder_decoder:
        sizes["num_decoder_layers"] = None
    runtime = resolved_runtime(config.runtime, plan.compile)
    changes: dict[str, Any] = {
        "run": config.run_name,
        "sizes": ModelSizes(**sizes),
        "global_batch_size": plan.global_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "max_steps": plan.max_steps,
        "optim": config.optim.resolved(),
        "runtime": runtime.model_copy(update={name: getattr(plan, name) for name in WAY}),
    }
    if data.stores is not None:
        split = data.stores["train"].manifest["split"]
        fraction = TAIL_FRACTION if split == "tail" else HASH_FRACTION
        if split != "given":
            fraction = config.corpus.validation_fraction or fraction
            changes["corpus"] = config.corpus.model_copy(update={"split": split, "validation_fraction": fraction})
    if config.init is None:
        # A configuration with `init` may not name a tokenizer: the model directory has its own.
        changes |= {"tokenizer": str(data.tokenizer.directory), "vocab_size": data.tokenizer.vocab_size}
    return config.model_copy(update=changes).model_dump(mode="json")
