"""The context of a model while it generates, with its KV cache: a window for a decoder, an answer for seq2seq."""

from collections import deque
from collections.abc import Sequence
from copy import copy
from typing import TypeVar

import torch
from torch import Tensor

from mini_llm.engine.kernels.decode import CompiledStep
from mini_llm.model import CausalLM, KVCache, Seq2SeqLM

AnyContext = TypeVar("AnyContext", bound="Context")


class Context:
    """A KV cache to which tokens are appended. `ahead` holds guessed next tokens and the logits (V,) after each."""

    cache: KVCache
    prompt_logits: Tensor

    def __init__(self) -> None:
        self.ahead: deque[tuple[int, Tensor]] = deque()

    def copy(self: AnyContext) -> AnyContext:
        """Return an equal context with its own KV cache."""
        other = copy(self)
        other.cache, other.ahead = self.cache.copy(), deque(self.ahead)
        return other

    def knows(self, token: int) -> bool:
        """Whether the logits after `token` have been computed."""
        return bool(self.ahead) and self.ahead[0][0] == token

    def append(self, token: int, guesses: Sequence[int] = ()) -> Tensor:
        """Append `token`. Return the logits (V,) after it.

        Computes the logits after `guesses` in the same pass; appending these tokens next takes no further pass.
        """
        if self.knows(token):
            self.cache.length += 1
            return self.ahead.popleft()[1]
        room = self.cache.max_length - self.cache.length - 1
        tokens = [token, *guesses[:room]]
        logits, *later = self._compute(tokens)
        # The keys of the guesses stay behind the end of the cache, where they are needed if the guesses are right.
        self.cache.truncate(self.cache.length - len(later))
        self.ahead = deque(zip(tokens[1:], later, strict=True))
        return logits

    def _compute(self, tokens: Sequence[int]) -> Tensor:
        """Append `tokens` (T) to the cache. Return the logits (T, V) after each."""
        raise NotImplementedError


class Window(Context):
    """The tokens that a causal model attends to, at most one context, with a KV cache.

    When the context is full, its last half (the new token included) is recomputed from position 0, and generation
    continues from there, so the model never sees a position that it was not trained on. `slides` counts these events.
    """

    def __init__(
        self,
        model: CausalLM,
        ids: list[int],
        new_tokens: int,
        step: CompiledStep | None = None,
        beginning: "Window | None" = None,
    ) -> None:
        """`ids` is the prompt, at most one context long. At most `new_tokens` are appended, with `step` if given.

        `beginning` may hold the keys of tokens that the prompt begins with, which are then not computed again.
        """
        super().__init__()
        weight = model.lm_head.weight
        self.model, self.prompt, self.step, self.device = model, ids, step, weight.device
        self.context = model.config.max_position_embeddings
        # A long-context model must not allocate its whole context for a short text.
        self.capacity = min(self.context, len(ids) + new_tokens)
        self.cache = KVCache(model.config, 1, self.capacity, device=self.device, dtype=weight.dtype)
        self.ids, self.slides, self.history = list(ids), 0, ids
        begins = beginning is not None and len(beginning.ids) < len(ids) and ids[: len(beginning.ids)] == beginning.ids
        self.beginning = beginning if begins else None
        self.prompt_logits = self._read_prompt()

    @property
    def full(self) -> bool:
        return self.cache.length == self.capacity

    def copy(self) -> "Window":
        other = super().copy()
        other.ids = list(self.ids)
        return other

    def restart(self) -> Tensor:
        """Go back to the prompt. Return the logits (V,) after it. Reuses its cached keys unless the window has slid."""
        self.ahead.clear()
        if self.slides:
            self.cache.truncate(0)
            self.prompt_logits = self._read_prompt()
        self.cache.truncate(len(self.prompt))
        self.ids, self.slides = list(self.prompt), 0
        return self.prompt_logits

    def append(self, token: int, guesses: Sequence[int] = ()) -> Tensor:
        self.ids.append(token)
        if not self.full:
            return super().append(token, guesses)
        self.slides += 1
        self.ids = self.ids[-max(1, self.context // 2) :]
        self.cache.truncate(0)
        return self._read(self.ids)

    def _read_prompt(self) -> Tensor:
        """Fill the empty cache with the prompt. Return the logits (V,) after it."""
        known = 0
        if self.beginning is not None:
            known = self.beginning.cache.length
            for own, shared in zip(self.cache.layers, self.beginning.cache.layers, strict=True):
                for target, source in zip(own, shared, strict=True):
                    target[:, :, :known] = source[:, :, :known]
            self.cache.length = known
        return self._read(self.prompt[known:])

    def _read(self, ids: list[int]) -> Tensor:
        """Append `ids` to the cache. Return the logits (V,) after the last."""
        # Apply the head to the last position only: on a long prompt, all logits would take gigabytes.
        return self._logits(ids, 1)[0]

    def _compute(self, tokens: Sequence[int]) -> Tensor:
        if self.step is not None:
            return self.step.follow(tokens, self.cache)
        return self._logits(tokens, len(tokens))

    def _logits(self, ids: Sequence[int], last: int) -> Tensor:
        hidden = self.model.trunk(torch.tensor([ids], device=self.device), None, self.cache)
        return self.model.predict(hidden[0, -last:])


class Answer(Context):
    """The context of an encoder-decoder's decoder: the encoded prompt and its own tokens, with a KV cache.

    Has the interface of Window but never slides, because the positions of these models are unbounded.
    """

    slides = 0

    def __init__(self, model: Seq2SeqLM, ids: list[int], new_tokens: int) -> None:
        """`ids` is the prompt with its eos token; at most `new_tokens` will be appended."""
        super().__init__()
        weight = model.lm_head.weight
        self.model, self.prompt, self.device = model, ids, weight.device
        self.history = [model.config.start_token]
        self.cache = KVCache(model.config, 1, new_tokens + 1, device=self.device, dtype=weight.dtype)
        self.memory = model.trunk.encoder(torch.tensor([ids], device=self.device))
        self.prompt_logits = self.append(self.history[0])

    def restart(self) -> Tensor:
        """Go back to the start of the answer. Return the logits (V,) of its first token."""
        self.ahead.clear()
        self.cache.truncate(1)
        return self.prompt_logits

    def _compute(self, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor([tokens], device=self.device)
        hidden = self.model.trunk.decoder(ids, None, self.cache, memory=self.memory)
        return self.model.predict(hidden[0])


def append_together(step: CompiledStep, windows: Sequence[Window], tokens: Sequence[int]) -> list[Tensor]:
    """Append one token to each window, with one step for all windows that have room. Return their logits (V,)."""
    open_rows = [i for i, window in enumerate(windows) if not window.full]
    logits: dict[int, Tensor] = {}
    if open_rows:
        for i in open_rows:
            windows[i].ids.append(tokens[i])
        rows = step([tokens[i] for i in open_rows], [windows[i].cache for i in open_rows])
        logits = dict(zip(open_rows, rows, strict=True))
    return [logits[i] if i in logits else window.append(tokens[i]) for i, window in enumerate(windows)]
