"""The DeepSpeed configuration of a run: derived from our settings and merged with the user's own file."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mini_llm.engine.errors import ConfigError

# Keys of the file that our settings decide, and the setting. The file may repeat a key only with the same value.
OWNERS = {
    "train_batch_size": "global_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "global_batch_size / (micro_batch_size x ranks)",
    "gradient_clipping": "optim.max_grad_norm",
    "zero_optimization.stage": "runtime.zero_stage",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "this program",
    "data_types.grad_accum_dtype": "this program",
    "bf16.enabled": "runtime.precision",
    "fp16.enabled": "runtime.precision",
    "torch_autocast.enabled": "runtime.precision",
    "zero_force_ds_cpu_optimizer": "this program",
}
# Sections that would add a second optimizer or schedule, and our settings for it.
REFUSED = {"optimizer": "optim", "scheduler": "schedule"}


def deepspeed_file(path: str | None) -> Path | None:
    """The user's file: runtime.deepspeed, or the deepspeed_config_file of `accelerate launch`."""
    launched = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    given = path or (None if launched == "none" else launched)
    return Path(given) if given else None


def read_deepspeed(path: Path) -> dict[str, Any]:
    """Read the configuration in a JSON file. Raises ConfigError if it is not a JSON object or has an optimizer."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"runtime.deepspeed={path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"runtime.deepspeed={path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"runtime.deepspeed={path}: expected a JSON object, not {type(config).__name__}")
    for section, ours in REFUSED.items():
        if section in config:
            raise ConfigError(
                f"runtime.deepspeed={path}: '{section}' is set by {ours}.* of this run; remove it from the file"
            )
    for section in {key.split(".")[0] for key in OWNERS if "." in key}:
        if not isinstance(config.get(section, {}), dict):
            raise ConfigError(f"runtime.deepspeed={path}: '{section}' must be a JSON object")
    return config


def file_stage(path: Path | None) -> int | None:
    """The ZeRO stage in the user's file, or None if it does not set one. Raises ConfigError for stage 0."""
    stage = read_deepspeed(path).get("zero_optimization", {}).get("stage") if path else None
    if stage in (None, "auto"):
        return None
    if stage not in (1, 2, 3):
        raise ConfigError(
            f"runtime.deepspeed={path}: zero_optimization.stage={stage}, expected 1, 2 or 3 "
            "(stage 0 shards nothing: omit the file for plain DDP)"
        )
    return stage


def deepspeed_config(
    stage: int,
    precision: str,
    accumulation: int,
    micro_batch_size: int,
    max_grad_norm: float,
    ranks: int = 1,
    path: Path | None = None,
) -> dict[str, Any]:
    """The DeepSpeed configuration for our settings, merged over the user's file at `path`.

    bf16 means autocast, which gives the losses of a run without DeepSpeed. A file with bf16.enabled=true selects
    DeepSpeed's own bf16 instead: half the memory for weights, but norms and residuals are bf16 too.
    "auto" in the file leaves a value to us. Raises ConfigError, with both values, if the file contradicts our settings.
    """
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    for part in ("optimizer", "param"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part.upper()}_DEVICE", "none")
        if device != "none":
            zero[f"offload_{part}"] = {"device": device}
    ours: dict[str, Any] = {
        "train_batch_size": micro_batch_size * accumulation * ranks,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        # DeepSpeed clips at 1.0 by default.
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        # DeepSpeed's default is the dtype of the model, which would accumulate gradients in bf16.
        "data_types": {"grad_accum_dtype": "fp32"},
        # Our own optimizer also steps offloaded states.
        "zero_force_ds_cpu_optimizer": False,
    }
    theirs = read_deepspeed(path) if path else {}
    if precision == "bf16" and theirs.get("bf16", {}).get("enabled") is not True:
        # Autocast with fp32 weights, gathered and reduced in fp32, as with DDP.
        ours["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    elif precision != "fp32":
        ours[precision] = {"enabled": True}
    given = dict(_leaves(theirs))
    expected = {**dict.fromkeys(OWNERS, False), **dict(_leaves(ours))}
    wrong = [
        f"  {key} is {given[key]!r}, this run has {expected[key]!r} (from {owner})"
        for key, owner in OWNERS.items()
        if key in given and given[key] not in ("auto", expected[key])
    ]
    if wrong:
        raise ConfigError("\n".join([f"runtime.deepspeed={path} contradicts the settings of this run:", *wrong]))
    merged = {**dict(_leaves(ours)), **{key: value for key, value in given.items() if value != "auto"}}
    # An "auto" key without a value of ours gets DeepSpeed's default.
    return _tree(merged)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("a.b", value) for every value that is not a JSON object."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _tree(leaves: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in leaves.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
