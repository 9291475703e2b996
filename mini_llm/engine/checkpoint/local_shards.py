"""The local shards of a model and its optimizer: what this rank holds, copied out and restored without gathering."""

from typing import Any

import torch
from torch import distributed, nn

from mini_llm.engine.checkpoint.shard_files import LocalShard, ShardReader
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


def copy_local_shards(
    model: nn.Module, optimizer: Any, rank: int, ranks: int, with_optimizer: bool = True
) -> dict[str, LocalShard]:
    """What this rank saves, copied to the CPU in fp32: its shards, and its slice of every replicated tensor.

    The copies of all ranks together hold every element exactly once. `with_optimizer`: include the optimizer state.
    """
    copies = {}
    for key, shard in local_shards(model, optimizer).items():
        start, values = shard.start, shard.values
        if shard.replicated:
            width = -(-values.numel() // ranks)
            start = min(rank * width, values.numel())
            values = values[start : start + width]
        if values.numel() and (with_optimizer or "/" not in key):
            copies[key] = LocalShard(start, shard.shape, values.to("cpu", torch.float32, copy=True))
    return copies


def local_shards(model: nn.Module, optimizer: Any) -> dict[str, LocalShard]:
    """Views of everything this rank holds, by "<parameter>" and "<parameter>/<state>".

    Raises CheckpointError for tensors that DeepSpeed keeps out of memory, and for frozen parameters under ZeRO.
    """
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    inner = innermost(optimizer)
    shards = {}
    for flat_weights, _, parameters, layout in zero_shards(optimizer):
        rank = distributed.get_rank(layout.group)
        for parameter, placement in zip(parameters, layout.placements, strict=True):
            name = names.pop(parameter)
            start, offset, count = placement.local_range(rank, flat_weights.numel())
            state = {f"/{key}": value for key, value in inner.state[flat_weights].items()}
            for suffix, flat in {"": flat_weights, **state}.items():
                if suffix == "/step":
                    step = torch.as_tensor(flat).reshape(1)
                    shards[name + suffix] = LocalShard(0, SCALAR, step, replicated=True)
                    continue
                values = flat.detach()[offset : offset + count]
                if values.numel() != count:
                    raise CheckpointError(f"checkpoint=sharded: {name} is not in memory; do not offload it to disk")
                shards[name + suffix] = LocalShard(start, placement.shape, values)
    # What ZeRO does not shard is replicated on every rank.
    for parameter, name in names.items():
        if is_sharded(parameter):
            raise CheckpointError(
                f"checkpoint=sharded: {name} is frozen, and ZeRO keeps frozen parameters outside the optimizer's "
                "shards; use checkpoint=full"
            )
        state = {f"/{key}": value for key, value in inner.state.get(parameter, {}).items()}
        for suffix, value in {"": parameter, **state}.items():
            shards[name + suffix] = LocalShard(0, value.shape, value.detach().reshape(-1), replicated=True)
    return shards


@torch.no_grad()
def restore_local_shards(model: nn.Module, optimizer: Any, reader: ShardReader) -> None:
    """Fill a prepared model and optimizer, tensor by tensor. Raises CheckpointError when they do not match."""
    named: dict[str, Any] = dict(unwrap(model).named_parameters())
    stored = {key: shape for key, shape in reader.shapes.items() if "/" not in key}
    expected = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in named.items()}
    if wrong := sorted(name for name in {*stored, *expected} if stored.get(name) != expected.get(name)):
        name = wrong[0]
        raise CheckpointError(
            f"{name} has shape {stored.get(name)} in the checkpoint and {expected.get(name)} in this model"
        )
    states = {key: shape for key, shape in reader.shapes.items() if "/" in key}
    check_states(model, optimizer, states)
    if states and any(is_sharded(parameter) for parameter in named.values()):
        step = next((key for key in states if key.endswith("/step")), None)
        create_sharded_state(optimizer, None if step is None else reader.read_tensor(step))
    shards = local_shards(model, optimizer)
    for key, shard in shards.items():
        if not shard.replicated and key in reader.shapes:
            shard.values.copy_(reader.read(key, shard.start, shard.values.numel()))
    inner = innermost(optimizer)
    for name, parameter in named.items():
        if hasattr(parameter, "ds_id"):
            # ZeRO-3: the working copy follows the fp32 shard.
            values = shards[name].values
            parameter.ds_tensor.data[: values.numel()].copy_(values)
            continue
        parameter.data.copy_(reader.read_tensor(name))
        if not is_sharded(parameter):
            kinds = [key.rpartition("/")[2] for key in states if key.rpartition("/")[0] == name]
            inner.state[parameter] = {kind: reader.read_tensor(f"{name}/{kind}").to(parameter.device) for kind in kinds}
