"""Whole tensors out of, and into, a model and optimizer that may be sharded by DeepSpeed ZeRO.

The canonical form is independent of ranks and ZeRO stage: fp32 weights by parameter name, and the optimizer's state as
"<parameter>/<state>". Every function here is collective: all ranks call it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import CheckpointError

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP or a DeepSpeed engine. (Accelerate's own imports DeepSpeed to find out.)"""
    return getattr(model, "module", model)


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights, whole, in fp32 on the CPU, under the model's own names (tied ones under each name)."""
    named = unwrap(model).named_parameters(remove_duplicate=False)
    return {name: _full_weight(parameter).detach().float().cpu().clone() for name, parameter in named}


def gather_state(model: nn.Module, optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights, optimizer state) in canonical form."""
    moments = {}
    inner = _innermost(optimizer)
    for name, parameter in unwrap(model).named_parameters():
        if _is_sharded(parameter):
            from deepspeed.utils import safe_get_full_optimizer_state

            for key in ADAM_MOMENTS:
                moments[f"{name}/{key}"] = safe_get_full_optimizer_state(parameter, key).float().cpu().clone()
            step = next(state["step"] for state in inner.state.values() if "step" in state)
            moments[f"{name}/step"] = torch.as_tensor(step, dtype=torch.float32).cpu().clone()
        else:
            for key, value in inner.state[parameter].items():
                moments[f"{name}/{key}"] = value.detach().float().cpu().clone()
    return gather_weights(model), moments


@torch.no_grad()
def restore_state(model: nn.Module, optimizer: Any, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    """Inverse of gather_state. Raises CheckpointError when the state is another optimizer's."""
    named = dict(unwrap(model).named_parameters())
    states: dict[str, dict[str, Tensor]] = {name: {} for name in named}
    for key, value in moments.items():
        name, _, state = key.rpartition("/")
        if name not in states:
            raise CheckpointError(f"the checkpoint's optimizer state names '{name}', which this model does not have")
        states[name][state] = value
    sharded = any(_is_sharded(parameter) for parameter in named.values())
    for name, state in states.items():
        if moments and sharded and not set(ADAM_MOMENTS) <= set(state):
            raise CheckpointError(
                f"the checkpoint holds {', '.join(state)} for {name}; ZeRO needs AdamW's: it was written with "
                "optim.name=muon, go on with that or start again with optim.name=adamw"
            )
    if moments and sharded:
        create_sharded_state(optimizer, next(value for key, value in moments.items() if key.endswith("/step")))
    inner = _innermost(optimizer)
    for name, parameter in named.items():
        if not _is_sharded(parameter):
            parameter.copy_(weights[name])
            inner.state[parameter] = {key: value.clone().to(parameter.device) for key, value in states[name].items()}
            continue
        _set_full(parameter, weights[name], None)
        for key in ADAM_MOMENTS if moments else ():
            _set_full(parameter, states[name][key], key)


def create_sharded_state(optimizer: Any, step: Tensor | None = None) -> None:
    """Give every flat fp32 shard its AdamW state now.

    DeepSpeed 0.19 links shards to parameters after the step of its first parameter group, when the other groups have
    no state yet, and never again; made beforehand, all of it is linked.
    """
    zero = optimizer.optimizer
    inner = _innermost(optimizer)
    shards = getattr(zero, "fp32_partitioned_groups_flat", None) or [p for g in inner.param_groups for p in g["params"]]
    for shard in shards:
        inner.state[shard] = {
            "step": torch.zeros(()) if step is None else step.clone(),
            "exp_avg": torch.zeros_like(shard),
            "exp_avg_sq": torch.zeros_like(shard),
        }
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _is_sharded(parameter: nn.Parameter) -> bool:
    """ZeRO-3 marks parameters with ds_id; ZeRO 1, 2 and its bf16 optimizer with _hp_mapping (None on other ranks)."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _full_weight(parameter: nn.Parameter) -> Tensor:
    if not _is_sharded(parameter):
        return parameter
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter)


def _set_full(parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """Write a whole tensor into this rank's shard: the fp32 weight (and its working copy), or an optimizer state."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "ds_id"):
        parameter.set_full_hp_param(value, key)
        if key is None:
            parameter.data.copy_(value)
        return
    size = parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank()
    flat = value.flatten()[rank * size : (rank + 1) * size]
    # The last rank's shard is padded.
    local = torch.nn.functional.pad(flat, (0, size - flat.numel()))
    parameter._z3_optimizer.set_local_hp_param(local, parameter, key)
    if key is None:
        parameter.ds_tensor.data.copy_(local)
