"""The decoder loop: a cached window over a model, and samples of text streamed from it."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import CheckpointError, ConfigError
from generate.config import GenerateConfig
from generate.sampling import next_token, random_stream
from generate.stop import StopFilter
from model import CausalLM, KVCache, Seq2SeqLM

if TYPE_CHECKING:
    from tokenizer import FastTokenizer, Tokenizer


class Window:
    """The tokens a causal model sees: at most its context, their keys and values cached.

    When the context is full, its last half (the new token included) is computed afresh from position 0, and generation
    goes on from there: the model never sees a position that it was not trained on. `slides` counts these times.
    """

    def __init__(self, model: CausalLM, ids: list[int], new_tokens: int) -> None:
        """`ids` is the prompt, at most one context long; `new_tokens` are to be appended at most."""
        weight = model.lm_head.weight
        self.model, self.prompt, self.device = model, ids, weight.device
        self.context = model.config.max_position_embeddings
        # Capped: a long-context model must not allocate all of it for a short text.
        self.capacity = min(self.context, len(ids) + new_tokens)
        self.cache = KVCache(model.config, 1, self.capacity, device=self.device, dtype=weight.dtype)
        self.ids, self.slides, self.history = list(ids), 0, ids
        self.prompt_logits = self._compute(self.ids)

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
        self.ids.append(token)
        if self.cache.length < self.capacity:
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


@dataclass
class Sample:
    """One text: what it starts from, and what has come out so far.

    `ids` are all the tokens generated, an end token and those of a stop string included; `text` ends before these.
    `finish_reason`: "end" (the model ended the text), "stop" (a stop string), "length" (max_new_tokens),
    "interrupted" (not finished). `window_slides`: how often the start of the text fell out of the model's sight.
    """

    index: int
    prompt: str
    prompt_ids: list[int]
    prompt_tokens_dropped: int = 0
    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish_reason: str = "interrupted"
    window_slides: int = 0
    seconds: float = 0.0
    seconds_to_first_token: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return len(self.ids) / self.seconds if self.seconds else 0.0


class TextGenerator:
    """A causal model or an encoder-decoder with its tokenizer and sampler settings.

    Never sampled: unknown, beginning, padding, mask, classification and separator tokens, and ids that only pad the
    vocabulary (at or above `tokenizer.vocab_size`). `end_ids` end a text, beside the tokenizer's own end token.
    With `add_bos` a causal model's prompt stands behind the beginning token; an empty one does always. That of an
    encoder-decoder ends in the end token.
    Raises CheckpointError when the tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        model: CausalLM | Seq2SeqLM,
        tokenizer: "Tokenizer | FastTokenizer",
        config: GenerateConfig,
        end_ids: Collection[int] = (),
        add_bos: bool = True,
    ) -> None:
        size = model.config.vocab_size
        if tokenizer.vocab_size > size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {size}: they do not belong together. "
                "Copy the tokenizer files of the training run into the model directory"
            )
        self.model, self.tokenizer, self.config, self.add_bos = model, tokenizer, config, add_bos
        self.end_ids = {i for i in (*end_ids, tokenizer.eos_id) if i is not None}
        # Some tokenizers use one token as beginning, padding and end; an end must stay reachable.
        names = ("unk_id", "bos_id", "pad_id", "mask_id", "cls_id", "sep_id")
        special = {getattr(tokenizer, name) for name in names} - {None} - self.end_ids
        self.suppressed_ids = sorted(special | (set(range(tokenizer.vocab_size, size)) - self.end_ids))
        self._suppressed = torch.tensor(self.suppressed_ids, dtype=torch.int64, device=model.lm_head.weight.device)
        self._window: Window | Answer | None = None

    def sample(self, prompt: str, index: int = 0) -> Sample:
        """A sample to pass to `stream`: the prompt's tokens, cut to the context.

        Of a prompt longer than the context the last `context - max_new_tokens` tokens are kept, or half a context where
        that is more; for an encoder-decoder the first ones, a context with the end token.
        Raises ConfigError for an empty prompt when there is no beginning token.
        """
        if self.model.config.is_encoder_decoder:
            return self._question(prompt, index)
        ids, start = self.tokenizer.encode(prompt), self.tokenizer.bos_id
        if start is not None and (self.add_bos or not ids):
            ids = [start, *ids]
        if not ids:
            raise ConfigError("the prompt is empty, and this tokenizer has no beginning token to start from: write one")
        context, kept = self.model.config.max_position_embeddings, len(ids)
        if kept > context:
            kept = max(1, context // 2, context - self.config.max_new_tokens)
        return Sample(index, prompt, ids[-kept:], len(ids) - kept)

    def _question(self, prompt: str, index: int) -> Sample:
        ids, end = self.tokenizer.encode(prompt), [i for i in [self.tokenizer.eos_id] if i is not None]
        room = self.model.config.max_position_embeddings - len(end)
        if not [*ids, *end]:
            raise ConfigError("the prompt is empty, and this tokenizer has no end token to read alone: write one")
        return Sample(index, prompt, [*ids[:room], *end], max(0, len(ids) - room))

    @torch.inference_mode()
    def stream(self, sample: Sample) -> Iterator[str]:
        """Yield the text of `sample` piece by piece, whole characters only, and fill in its fields.

        Text that may be the beginning of a stop string is held back until it is certain.
        Raises NonFiniteError when the model gives NaN.
        """
        begin = time.perf_counter()
        rng = random_stream(self.config.seed, sample.index)
        decoder, stop = self.tokenizer.stream(), StopFilter(self.config.stop)
        window, logits = self._open_window(sample.prompt_ids)
        count = len(window.history)
        history = torch.zeros(count + self.config.max_new_tokens, dtype=torch.int64, device=logits.device)
        history[:count] = torch.tensor(window.history)
        reason = "interrupted"
        while reason == "interrupted":
            token = next_token(logits, history[:count], self._suppressed, self.config, rng)
            history[count] = token
            count += 1
            sample.ids.append(token)
            sample.seconds = time.perf_counter() - begin
            sample.seconds_to_first_token = sample.seconds_to_first_token or sample.seconds
            ended = token in self.end_ids
            piece = stop.push("" if ended else decoder.push(token))
            if ended:
                reason = "end"
            elif stop.stopped:
                reason = "stop"
            elif len(sample.ids) == self.config.max_new_tokens:
                reason = "length"
            sample.text += piece
            if piece:
                yield piece
            if reason == "interrupted":
                logits = window.append(token)
                sample.window_slides = window.slides
        rest = stop.push(decoder.flush())
        rest += stop.flush()
        sample.finish_reason = "stop" if stop.stopped else reason
        sample.text += rest
        if rest:
            yield rest

    def _open_window(self, ids: list[int]) -> tuple[Window | Answer, Tensor]:
        """The samples of one prompt share its keys and values: those of later samples are the same bits."""
        if self._window is None or self._window.prompt != ids:
            kind = Answer if self.model.config.is_encoder_decoder else Window
            self._window = kind(self.model, ids, self.config.max_new_tokens)
        return self._window, self._window.restart()
