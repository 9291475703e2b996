"""Gather and restore the full state dict of a model and optimizer that DeepSpeed ZeRO may have sharded.

The full state dict is independent of rank count and ZeRO stage: fp32 weights by parameter name, and optimizer state by
"<parameter>/<state>". All ranks must call the functions that gather or restore.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.muon import WHOLE, Placement, ShardedMatrices
from mini_llm.model import Model

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)


def unwrap(model: nn.Module) -> Model:
    """The model inside DDP or a DeepSpeed engine. Accelerate's unwrap_model would import DeepSpeed."""
    inner: Any = getattr(model, "module", model)
    return inner


def gather_weights(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """All full weights in fp32 on the CPU, by parameter name (tied weights under each name). Collective.

    A rank that does not write them passes keep=False: it participates but holds only one tensor at a time.
    """
    named = unwrap(model).named_parameters(remove_duplicate=False)
    pairs = ((name, full_weight(parameter, keep)) for name, parameter in named)
    return {name: weight for name, weight in pairs if weight is not None}


def gather_state(model: nn.Module, optimizer: Any, keep: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The full state dict as (weights, optimizer state); `keep` as in gather_weights. Collective."""
    moments = {}
    inner = innermost(optimizer)
    kinds = _state_keys(optimizer)
    for name, parameter in unwrap(model).named_parameters():
        if not is_sharded(parameter):
            for key, value in inner.state[parameter].items() if keep else ():
                moments[f"{name}/{key}"] = _copy(value)
        elif parameter.requires_grad:
            from deepspeed.utils import safe_get_full_optimizer_state

            for key in kinds[parameter]:
                value = safe_get_full_optimizer_state(parameter, key)
                if keep:
                    moments[f"{name}/{key}"] = _copy(value)
            if kinds[parameter] == ADAM_MOMENTS and keep:
                step = next(state["step"] for state in inner.state.values() if "step" in state)
                moments[f"{name}/step"] = torch.as_tensor(step, dtype=torch.float32).cpu().clone()
    return gather_weights(model, keep), moments


def _copy(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone()


@torch.no_grad()
def restore_state(model: nn.Module, optimizer: Any, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
    """Inverse of gather_state. Raises CheckpointError for the state of a different optimizer. Collective."""
    for key, value in moments.items():
        if not value.is_floating_point():
            raise CheckpointError(f"optimizer state {key} of the checkpoint is {value.dtype}, not floating point")
    check_states(model, optimizer, {key: value.shape for key, value in moments.items()})
    named = dict(unwrap(model).named_parameters())
    states: dict[str, dict[str, Tensor]] = {name: {} for name in named}
    for key, value in moments.items():
        name, _, state = key.rpartition("/")
        states[name][state] = value
    kinds = _state_keys(optimizer)
    if moments and any(is_sharded(parameter) for parameter in named.values()):
        create_sharded_state(optimizer, next((v for key, v in moments.items() if key.endswith("/step")), None))
    inner = innermost(optimizer)
    for name, parameter in named.items():
        if not is_sharded(parameter):
            parameter.copy_(weights[name])
            inner.state[parameter] = {key: value.clone().to(parameter.device) for key, value in states[name].items()}
            continue
        _set_full(parameter, weights[name], None)
        for key in kinds.get(parameter, ()) if moments else ():
            _set_full(parameter, states[name][key], key)


def check_states(model: nn.Module, optimizer: Any, shapes: Mapping[str, torch.Size]) -> None:
    """Raises CheckpointError if these shapes, by "<parameter>/<state>", do not fit this optimizer."""
    named = dict(unwrap(model).named_parameters())
    states: dict[str, dict[str, torch.Size]] = {name: {} for name in named}
    for key, shape in shapes.items():
        name, _, state = key.rpartition("/")
        if name not in states:
            raise CheckpointError(f"the checkpoint's optimizer state names '{name}', which this model does not have")
        states[name][state] = shape
    kinds = _state_keys(optimizer)
    for name, parameter in named.items():
        missing = set(kinds.get(parameter, ())) - set(states[name])
        if shapes and missing:
            raise CheckpointError(
                f"the checkpoint has {', '.join(states[name]) or 'no state'} for {name}, but the optimizer needs "
                f"{', '.join(kinds[parameter])}: resume with the optim.name it was written with, or start a new run"
            )
        for state, shape in states[name].items():
            expected = torch.Size() if state == "step" else getattr(parameter, "ds_shape", parameter.shape)
            if shape != expected:
                raise CheckpointError(
                    f"optimizer state {name}/{state} of the checkpoint has shape {tuple(shape)}, not {tuple(expected)}"
                )


def create_sharded_state(optimizer: Any, step: Tensor | None = None) -> None:
    """Create the optimizer state of every flat fp32 shard, and tell Muon which matrices the shard belongs to.

    DeepSpeed 0.19 links optimizer state to parameters once, after the step of its first parameter group, when the other
    groups have no state yet. State created before the first step is linked completely.
    """
    zero = optimizer.optimizer
    inner: Any = innermost(optimizer)
    for shard, group, _, matrices in zero_shards(optimizer):
        inner.state[shard] = {key: torch.zeros_like(shard) for key in _keys(group)}
        if "momentum" in group:
            inner.sharded[shard] = matrices
        else:
            start = torch.zeros(()) if step is None else step.clone()
            inner.state[shard]["step"] = start.to(shard.device)
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def zero_shards(optimizer: Any) -> Iterator[tuple[Tensor, dict[str, Any], list[nn.Parameter], ShardedMatrices]]:
    """Yield (this rank's flat fp32 shard, its param group, the parameters in it, their layout) for each ZeRO group."""
    zero: Any = getattr(optimizer, "optimizer", None)
    if not _is_zero(zero):
        return
    groups, pieces = zero.optimizer.param_groups, zero.optimizer.pieces
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        for i, shard in enumerate(zero.fp32_partitioned_groups_flat):
            placements, start = [], 0
            for p in zero.fp16_groups[i]:
                placements.append(Placement(p.ds_shape, start, p.partition_numel(), pieces.get(p, WHOLE)))
                start += p.partition_numel()
            layout = ShardedMatrices(placements, zero.sub_group_process_groups[i], zero.fp16_groups[i][0].device)
            yield shard, groups[zero.sub_group_to_group_id[i]], zero.fp16_groups[i], layout
        return
    # The ZeRO-1 optimizer for bf16 uses other attribute names and does not pad between parameters.
    all_parameters = getattr(zero, "round_robin_bit16_groups", None) or zero.bf16_groups
    for i, (group, parameters) in enumerate(zip(groups, all_parameters, strict=True)):
        ends = accumulate(p.numel() for p in parameters)
        starts = getattr(zero, "round_robin_bit16_offsets", None)
        starts = starts[i] if starts else [end - p.numel() for end, p in zip(ends, parameters, strict=True)]
        placements = [
            Placement(p.shape, start, pieces=pieces.get(p, WHOLE)) for p, start in zip(parameters, starts, strict=True)
        ]
        layout = ShardedMatrices(placements, zero.real_dp_process_group[i], parameters[0].device)
        yield group["params"][0], group, parameters, layout


def _is_zero(optimizer: Any) -> bool:
    return any(hasattr(optimizer, name) for name in ("fp16_groups", "bit16_groups", "bf16_groups"))


def _keys(group: dict[str, Any]) -> tuple[str, ...]:
    return MUON_MOMENTS if "momentum" in group else ADAM_MOMENTS


def _state_keys(optimizer: Any) -> dict[nn.Parameter, tuple[str, ...]]:
    """Names of the moments that the optimizer keeps for each parameter."""
    if _is_zero(getattr(optimizer, "optimizer", None)):
        groups = ((parameters, group) for _, group, parameters, _ in zero_shards(optimizer))
    else:
        groups = ((group["params"], group) for group in innermost(optimizer).param_groups)
    return {parameter: _keys(group) for parameters, group in groups for parameter in parameters}


def optimizer_numbers(optimizer: Any) -> int:
    """Number of elements of the optimizer state over all ranks."""
    kinds = _state_keys(optimizer).items()
    return sum(len(keys) * getattr(parameter, "ds_numel", parameter.numel()) for parameter, keys in kinds)


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside the wrappers of Accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def is_sharded(parameter: nn.Parameter) -> bool:
    """ZeRO-3 marks parameters with ds_id; ZeRO 1, 2 and its bf16 optimizer with _hp_mapping (None on other ranks)."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def full_weight(parameter: nn.Parameter, keep: bool = True) -> Tensor | None:
    """A copy of one full weight in fp32 on the CPU, or None without `keep`. Collective if it is sharded."""
    if is_sharded(parameter):
        from deepspeed.utils import safe_get_full_fp32_param

        parameter = safe_get_full_fp32_param(parameter)
    return _copy(parameter) if keep else None


def _set_full(parameter: Any, value: Tensor, key: str | None) -> None:
    """Write a full tensor into this rank's shard: an optimizer state, or the fp32 weight and its working copy."""
    value = value.to(parameter.device)
    if not hasattr(parameter, "ds_id"):
        parameter.set_full_hp_param(value, key)
        if key is None:
            parameter.data.copy_(value)
        return
    size = parameter.ds_tensor.numel()
    rank = torch.distributed.get_rank()
    flat = value.flatten()[rank * size : (rank + 1) * size]
    # Pad the shard of the last rank.
    local = torch.nn.functional.pad(flat, (0, size - flat.numel()))
    parameter._z3_optimizer.set_local_hp_param(local, parameter, key)
    if key is None:
        parameter.ds_tensor.data.copy_(local)
