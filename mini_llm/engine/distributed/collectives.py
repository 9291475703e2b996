"""Collectives for values that must be the same on all ranks."""

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list


def broadcast(value: Any, accelerator: Accelerator | PartialState) -> Any:
    """Return the main process's value on every rank."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def agree(number: int, accelerator: Accelerator) -> int:
    """Return the largest `number` of any rank, such as the signal that one of them received."""
    if accelerator.num_processes == 1:
        return number
    flag = torch.tensor(number, device=accelerator.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return int(flag.item())
