"""What one rank holds of weights and optimizer state, without gathering: ranges of tensors, out of it and into it."""

from typing import Any

import torch
from torch import distributed, nn

from mini_llm.engine.checkpoint.shard_files import Fragment, Shards
from mini_llm.engine.distributed.zero import (
    check_states,
    create_sharded_state,
    innermost,
    is_sharded,
    unwrap,
    zero_shards,
)
from mini_llm.engine.errors import CheckpointError

SCALAR = torch.Size()


def copy_fragments(
    model: nn.Module, optimizer: Any, rank: int, ranks: int, moments: bool = True
) -> dict[str, Fragment]:
    """What this rank is to save, copied to the CPU in fp32: its shards, and a share of what every rank has.

    All ranks' together are everything, once. `moments`: the optimizer's state too.
    """
    copies = {}
    for key, part in hold_fragments(model, optimizer).items():
        start, values = part.start, part.values
        if part.everywhere:
            width = -(-values.numel() // ranks)
            start = min(rank * width, values.numel())
            values = values[start : start + width]
        if values.numel() and (moments or "/" not in key):
            copies[key] = Fragment(start, part.shape, values.to("cpu", torch.float32, copy=True))
    return copies


def hold_fragments(model: nn.Module, optimizer: Any) -> dict[str, Fragment]:
    """Everything this rank holds, where it lies: by "<parameter>" and "<parameter>/<state>"."""
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    inner = innermost(optimizer)
    held = {}
    for shard, _, parameters, layout in zero_shards(optimizer):
        rank = distributed.get_rank(layout.group)
        for parameter, placement in zip(parameters, layout.placements, strict=True):
            name = names.pop(parameter)
            start, place, count = placement.part(rank, shard.numel())
            for suffix, flat in [("", shard), *((f"/{key}", value) for key, value in inner.state[shard].items())]:
                if suffix == "/step":
                    held[name + suffix] = Fragment(0, SCALAR, torch.as_tensor(flat).reshape(1), everywhere=True)
                    continue
                held[name + suffix] = Fragment(start, placement.shape, flat.detach()[place : place + count])
                if held[name + suffix].values.numel() != count:
                    raise CheckpointError(f"checkpoint=sharded: {name} is not in memory; do not offload it to a disk")
    for parameter, name in names.items():
        if is_sharded(parameter):
            raise CheckpointError(f"checkpoint=sharded: {name} is frozen, which ZeRO keeps elsewhere; use gathered")
        for suffix, value in [("", parameter), *((f"/{k}", v) for k, v in inner.state.get(parameter, {}).items())]:
            held[name + suffix] = Fragment(0, value.shape, value.detach().reshape(-1), everywhere=True)
    return held


@torch.no_grad()
def restore_fragments(model: nn.Module, optimizer: Any, shards: Shards) -> None:
    """Fill a prepared model and optimizer, tensor by tensor. Raises CheckpointError when they do not fit."""
    named = dict(unwrap(model).named_parameters())
    weights = {key: shape for key, shape in shards.shapes.items() if "/" not in key}
    expected = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in named.items()}
    if wrong := sorted(name for name in {*weights, *expected} if weights.get(name) != expected.get(name)):
        name = wrong[0]
        raise CheckpointError(f"{name} has shape {weights.get(name)} there and {expected.get(name)} in this model")
    moments = {key: shape for key, shape in shards.shapes.items() if "/" in key}
    check_states(model, optimizer, moments)
    if moments and any(is_sharded(parameter) for parameter in named.values()):
        step = next((key for key in moments if key.endswith("/step")), None)
        create_sharded_state(optimizer, None if step is None else shards.whole(step))
    held = hold_fragments(model, optimizer)
    for key, part in held.items():
        if not part.everywhere and key in shards.shapes:
            part.values.copy_(shards.read(key, part.start, part.values.numel()))
    inner = innermost(optimizer)
    for name, parameter in named.items():
        if hasattr(parameter, "ds_id"):
            mine = held[name].values
            parameter.ds_tensor.data[: mine.numel()].copy_(mine)
            continue
        parameter.data.copy_(shards.whole(name))
        if not is_sharded(parameter):
            kinds = [key.rpartition("/")[2] for key in moments if key.rpartition("/")[0] == name]
            inner.state[parameter] = {kind: shards.whole(f"{name}/{kind}").to(parameter.device) for kind in kinds}
