"""What a model sees while it writes, keys and values cached: a decoder its window, an encoder-decoder its answer."""

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mini_llm.model import CausalLM, KVCache, Seq2SeqLM

if TYPE_CHECKING:
    from mini_llm.engine.kernels.decode import CompiledStep


class Window:
    """The tokens a causal model sees: at most its context, their keys and values cached.

    When the context is full, its last half (the new token included) is computed afresh from position 0, and generation
    goes on from there: the model never sees a position that it was not trained on. `slides` counts these times.
    """

    def __init__(self, model: CausalLM, ids: list[int], new_tokens: int, step: "CompiledStep | None" = None) -> None:
        """`ids` is the prompt, at most one context long; `new_tokens` are to be appended at most, by the `step`."""
        weight = model.lm_head.weight
        self.model, self.prompt, self.step, self.device = model, ids, step, weight.device
        self.context = model.config.max_position_embeddings
        # Capped: a long-context model must not allocate all of it for a short text.
        self.capacity = min(self.context, len(ids) + new_tokens)
        self.cache = KVCache(model.config, 1, self.capacity, device=self.device, dtype=weight.dtype)
        self.ids, self.slides, self.history = list(ids), 0, ids
        self.prompt_logits = self._compute(self.ids)

    @property
    def full(self) -> bool:
        return self.cache.length == self.capacity

    def copy(self) -> "Window":
        """The same window with keys and values of its own."""
        other = copy(self)
        other.ids, other.cache = list(self.ids), self.cache.copy()
        return other

    def restart(self) -> Tensor:
        """Go back to the prompt; logits (V,) after it. Its keys and values are kept, unless the window has moved on."""
        if self.slides:
            self.cache.truncate(0)
            self.prompt_logits = self._compute(self.prompt)
        self.cache.truncate(len(self.prompt))
        self.ids, self.slides = list(self.prompt), 0
        return self.prompt_logits

    def append(self, token: int) -> Tensor:
        """Logits (V,) after `token`."""
        if self.step is not None and not self.full:
            return append_together(self.step, [self], [token])[0]
        self.ids.append(token)
        if not self.full:
            return self._compute([token])
        self.slides += 1
        self.ids = self.ids[-max(1, self.context // 2) :]
        self.cache.truncate(0)
        return self._compute(self.ids)

    def _compute(self, ids: list[int]) -> Tensor:
        hidden = self.model.trunk(torch.tensor([ids], device=self.device), None, self.cache)
        # The vocabulary head on the last position alone: on a long prompt the other logits would be gigabytes.
        return self.model.predict(hidden[:, -1])[0]


class Answer:
    """What the decoder of an encoder-decoder sees: the encoded prompt, and its own tokens, keys and values cached.

    The same interface as Window; it never slides, since positions of these models have no end.
    """

    slides = 0

    def __init__(self, model: Seq2SeqLM, ids: list[int], new_tokens: int) -> None:
        """`ids` is the prompt with its end token; `new_tokens` are to be appended at most."""
        weight = model.lm_head.weight
        self.model, self.prompt, self.device = model, ids, weight.device
        self.history = [model.config.decoder_start_token_id]
        self.cache = KVCache(model.config, 1, new_tokens + 1, device=self.device, dtype=weight.dtype)
        self.memory = model.trunk.encoder(torch.tensor([ids], device=self.device))
        self.prompt_logits = self.append(self.history[0])

    def restart(self) -> Tensor:
        """Go back to the beginning of the answer; logits (V,) of its first token."""
        self.cache.truncate(1)
        return self.prompt_logits

    def append(self, token: int) -> Tensor:
        """Logits (V,) after `token`."""
        tokens = torch.tensor([[token]], device=self.device)
        hidden = self.model.trunk.decoder(tokens, None, self.cache, memory=self.memory)
        return self.model.predict(hidden[:, -1])[0]


def append_together(step: "CompiledStep", windows: Sequence[Window], tokens: Sequence[int]) -> list[Tensor]:
    """Logits (V,) after one more token in each window: those that have room in one step, the full ones alone."""
    open_rows = [i for i, window in enumerate(windows) if not window.full]
    logits: dict[int, Tensor] = {}
    if open_rows:
        for i in open_rows:
            windows[i].ids.append(tokens[i])
        made = step([tokens[i] for i in open_rows], [windows[i].cache for i in open_rows])
        logits = dict(zip(open_rows, made, strict=True))
    return [logits[i] if i in logits else window.append(tokens[i]) for i, window in enumerate(windows)]
