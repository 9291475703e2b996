"""Texts that a decoder writes at each evaluation: the greedy continuations of the first validation texts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mini_llm.engine.batch import Batch
from mini_llm.engine.distributed.zero import unwrap

COLUMNS = ["prompt", "model", "text"]
PROMPT_TOKENS, NEW_TOKENS = 32, 32

Samples = Callable[[nn.Module], tuple[list[str], list[list[Any]]]]


def make_samples(count: int, held_out: Sequence[Batch], decode: Callable[[list[int]], str]) -> Samples:
    """A function that lets a model continue the beginnings of `count` rows of the validation batches.

    It returns COLUMNS and rows: the beginning, what the model writes, and how the text goes on.
    """
    rows = torch.cat([batch["input_ids"] for batch in held_out])[:count]
    length = min(PROMPT_TOKENS, rows.size(1) // 2)
    prompts, texts = rows[:, :length], rows[:, length : length + NEW_TOKENS]

    def samples(model: nn.Module) -> tuple[list[str], list[list[Any]]]:
        written = continue_greedily(model, prompts, texts.size(1))
        columns = (prompts.tolist(), written.tolist(), texts.tolist())
        return COLUMNS, [[decode(ids) for ids in row] for row in zip(*columns, strict=True)]

    return samples


@torch.no_grad()
def continue_greedily(model: nn.Module, prompts: Tensor, count: int) -> Tensor:
    """The `count` most probable next tokens after each prompt (B, P), one after another: (B, count)."""
    ids = prompts.to(next(unwrap(model).parameters()).device)
    model.eval()
    for _ in range(count):
        ids = torch.cat([ids, model(input_ids=ids)[:, -1:].argmax(-1)], dim=1)
    model.train()
    return ids[:, prompts.size(1) :].cpu()
