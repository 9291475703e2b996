"""Values that all ranks must share."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


def broadcast(value: Any, accelerator: Accelerator) -> Any:
    """The main process's value on every rank."""
    if accelerator.num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def agree(number: int, accelerator: Accelerator) -> int:
    """The largest signal number seen by any rank."""
    if accelerator.num_processes == 1:
        return number
    flag = torch.tensor(number, device=accelerator.device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return int(flag.item())
