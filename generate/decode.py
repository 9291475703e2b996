"""The decoder loop: samples of text, streamed one at a time or written together."""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.model import CausalLM, Seq2SeqLM

from .config import GenerateConfig
from .context import Answer, Window, append_together
from .sampling import next_token, random_stream
from .stop import StopFilter

if TYPE_CHECKING:
    from mini_llm.engine.kernels.decode import CompiledStep
    from mini_llm.tokenization.fast import FastTokenizer
    from mini_llm.tokenization.tokenizer import Tokenizer


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


class Continuation:
    """A sample while it is written: its window, its random numbers, the characters and stop strings not yet whole."""

    def __init__(
        self, generator: "TextGenerator", sample: Sample, window: Window | Answer, logits: Tensor, begin: float
    ) -> None:
        self.generator, self.sample, self.window, self.logits, self.begin = generator, sample, window, logits, begin
        self.config = generator.config
        self.rng = random_stream(self.config.seed, sample.index)
        self.decoder, self.stop = generator.tokenizer.stream(), StopFilter(self.config.stop)
        self.count = len(window.history)
        size = self.count + self.config.max_new_tokens
        self.history = torch.zeros(size, dtype=torch.int64, device=logits.device)
        self.history[: self.count] = torch.tensor(window.history)
        self.token, self.finished = -1, False

    def choose(self) -> str:
        """Take the next token from `logits`: the text that it makes certain, and all that is left with the last one."""
        sample, generator = self.sample, self.generator
        token = next_token(self.logits, self.history[: self.count], generator.suppressed, self.config, self.rng)
        self.history[self.count] = self.token = token
        self.count += 1
        sample.ids.append(token)
        sample.seconds = time.perf_counter() - self.begin
        sample.seconds_to_first_token = sample.seconds_to_first_token or sample.seconds
        ended = token in generator.end_ids
        piece = self.stop.push("" if ended else self.decoder.push(token))
        self.finished = ended or self.stop.stopped or len(sample.ids) == self.config.max_new_tokens
        if self.finished:
            piece += self.stop.push(self.decoder.flush()) + self.stop.flush()
            sample.finish_reason = "stop" if self.stop.stopped else "end" if ended else "length"
        sample.text += piece
        return piece

    def resume(self, logits: Tensor) -> None:
        """Go on with logits (V,) after the chosen token."""
        self.logits, self.sample.window_slides = logits, self.window.slides


class TextGenerator:
    """A causal model or an encoder-decoder with its tokenizer and sampler settings.

    Never sampled: unknown, beginning, padding, mask, classification and separator tokens, and ids that only pad the
    vocabulary (at or above `tokenizer.vocab_size`). `end_ids` end a text, beside the tokenizer's own end token.
    With `add_bos` a causal model's prompt stands behind the beginning token; an empty one does always. That of an
    encoder-decoder ends in the end token. With a `step` the model itself reads prompts only.
    Raises CheckpointError when the tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        model: CausalLM | Seq2SeqLM,
        tokenizer: "Tokenizer | FastTokenizer",
        config: GenerateConfig,
        end_ids: Collection[int] = (),
        add_bos: bool = True,
        step: "CompiledStep | None" = None,
    ) -> None:
        size = model.config.vocab_size
        if tokenizer.vocab_size > size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model {size}: they do not belong together. "
                "Copy the tokenizer files of the training run into the model directory"
            )
        self.model, self.tokenizer, self.config, self.add_bos = model, tokenizer, config, add_bos
        self.step = step
        self.end_ids = {i for i in (*end_ids, tokenizer.eos_id) if i is not None}
        # Some tokenizers use one token as beginning, padding and end; an end must stay reachable.
        names = ("unk_id", "bos_id", "pad_id", "mask_id", "cls_id", "sep_id")
        special = {getattr(tokenizer, name) for name in names} - {None} - self.end_ids
        self.suppressed_ids = sorted(special | (set(range(tokenizer.vocab_size, size)) - self.end_ids))
        self.suppressed = torch.tensor(self.suppressed_ids, dtype=torch.int64, device=model.lm_head.weight.device)
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
        text = Continuation(self, sample, *self._open_window(sample.prompt_ids), begin)
        while True:
            piece = text.choose()
            if piece:
                yield piece
            if text.finished:
                return
            text.resume(text.window.append(text.token))

    @torch.inference_mode()
    def write(self, samples: Iterable[Sample], rows: int = 16) -> Iterator[Sample]:
        """Fill in many samples, `rows` at a time, and yield each when it is finished: what `stream` makes of it.

        With a step the texts of different lengths advance together, each weight is read once for all of them, and the
        next begins when one has ended. Without one they are written one after another.
        Raises NonFiniteError when the model gives NaN.
        """
        if self.step is None:
            for sample in samples:
                for _ in self.stream(sample):
                    pass
                yield sample
            return
        waiting, texts = deque(samples), []
        while waiting or texts:
            while waiting and len(texts) < rows:
                sample, begin = waiting.popleft(), time.perf_counter()
                window, logits = self._open_window(sample.prompt_ids)
                texts.append(Continuation(self, sample, window.copy(), logits, begin))
            for text in texts:
                text.choose()
            yield from (text.sample for text in texts if text.finished)
            texts = [text for text in texts if not text.finished]
            rest = append_together(self.step, [text.window for text in texts], [text.token for text in texts])
            for text, logits in zip(texts, rest, strict=True):
                text.resume(logits)

    def _open_window(self, ids: list[int]) -> tuple[Window | Answer, Tensor]:
        """The samples of one prompt share its keys and values: those of later samples are the same bits."""
        if self._window is None or self._window.prompt != ids:
            if self.model.config.is_encoder_decoder:
                self._window = Answer(self.model, ids, self.config.max_new_tokens)
            else:
                self._window = Window(self.model, ids, self.config.max_new_tokens, self.step)
        return self._window, self._window.restart()
