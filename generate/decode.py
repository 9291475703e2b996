"""The decoder loop: generate samples one at a time as a stream, or many in batches."""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.kernels.decode import CompiledStep
from mini_llm.model import CausalLM, Seq2SeqLM
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

from .config import GenerateConfig
from .context import Answer, Window, append_together
from .sampling import next_token, random_stream
from .stop import StopFilter


@dataclass
class Sample:
    """One generated text: its prompt and what has been generated so far.

    `ids` are all generated tokens, including an eos token and the tokens of a stop string; `text` excludes both.
    `finish_reason`: "end" (the model ended the text), "stop" (a stop string), "length" (max_new_tokens) or
    "interrupted" (not finished). `window_slides` counts how often the start of the text left the context.
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
    """A sample in progress: its context, its random numbers, and its incomplete characters and stop strings."""

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
        """Sample the next token from `logits`. Return the text that is now final; the last token returns the rest."""
        sample, generator = self.sample, self.generator
        token = next_token(self.logits, self.history[: self.count], generator.suppressed, self.config, self.rng)
        self.history[self.count] = self.token = token
        self.count += 1
        sample.ids.append(token)
        sample.seconds = time.perf_counter() - self.begin
        sample.seconds_to_first_token = sample.seconds_to_first_token or sample.seconds
        ended = token in generator.end_ids
        text = self.stop.push("" if ended else self.decoder.push(token))
        self.finished = ended or self.stop.stopped or len(sample.ids) == self.config.max_new_tokens
        if self.finished:
            text += self.stop.push(self.decoder.flush()) + self.stop.flush()
            sample.finish_reason = "stop" if self.stop.stopped else "end" if ended else "length"
        sample.text += text
        return text

    def resume(self, logits: Tensor) -> None:
        """Continue with the logits (V,) after the chosen token."""
        self.logits, self.sample.window_slides = logits, self.window.slides


class TextGenerator:
    """A causal model or an encoder-decoder with its tokenizer and sampler settings.

    Never samples unk, bos, pad, mask, cls and sep tokens, nor ids that only pad the vocabulary (at or above
    `tokenizer.vocab_size`). A text ends at any of `end_ids` or at the tokenizer's eos token. With `add_bos`, the prompt
    of a causal model starts with the bos token; an empty prompt always does. The prompt of an encoder-decoder ends with
    the eos token. With a `step`, the model itself only reads prompts, and the compiled step generates.
    Raises CheckpointError if the tokenizer has more tokens than the model.
    """

    def __init__(
        self,
        model: CausalLM | Seq2SeqLM,
        tokenizer: Tokenizer | FastTokenizer,
        config: GenerateConfig,
        end_ids: Collection[int] = (),
        add_bos: bool = True,
        step: CompiledStep | None = None,
    ) -> None:
        size = model.config.vocab_size
        if tokenizer.vocab_size > size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {size}: they do not match. "
                "Copy the tokenizer files of the training run into the model directory"
            )
        self.model, self.tokenizer, self.config, self.add_bos = model, tokenizer, config, add_bos
        self.step = step
        self.end_ids = {i for i in (*end_ids, tokenizer.eos_id) if i is not None}
        # Some tokenizers use one token as bos, pad and eos; never suppress an eos token.
        names = ("unk_id", "bos_id", "pad_id", "mask_id", "cls_id", "sep_id")
        special = {getattr(tokenizer, name) for name in names} - {None} - self.end_ids
        self.suppressed_ids = sorted(special | (set(range(tokenizer.vocab_size, size)) - self.end_ids))
        self.suppressed = torch.tensor(self.suppressed_ids, dtype=torch.int64, device=model.lm_head.weight.device)
        self._window: Window | Answer | None = None

    def configure(self, config: GenerateConfig) -> None:
        """Use `config` from the next sample on."""
        self.config, self._window = config, None

    def sample(self, prompt: str, index: int = 0) -> Sample:
        """Return a sample to pass to `stream`, with the tokens of the prompt truncated to the context.

        A causal model keeps the last `context - max_new_tokens` tokens of a prompt longer than its context, but at
        least half a context. An encoder-decoder keeps the first tokens, one context including the eos token.
        Raises ConfigError for an empty prompt when the tokenizer has no token to start from.
        """
        if self.model.config.is_encoder_decoder:
            return self._question(prompt, index)
        ids, start = self.tokenizer.encode(prompt), self.tokenizer.bos_id
        if start is not None and (self.add_bos or not ids):
            ids = [start, *ids]
        if not ids:
            raise ConfigError("the prompt is empty, and this tokenizer has no bos token to start from: give a prompt")
        context, kept = self.model.config.max_position_embeddings, len(ids)
        if kept > context:
            kept = max(1, context // 2, context - self.config.max_new_tokens)
        return Sample(index, prompt, ids[-kept:], len(ids) - kept)

    def _question(self, prompt: str, index: int) -> Sample:
        ids, end = self.tokenizer.encode(prompt), [i for i in [self.tokenizer.eos_id] if i is not None]
        room = self.model.config.max_position_embeddings - len(end)
        if not [*ids, *end]:
            raise ConfigError(
                "the prompt is empty, and this tokenizer has no eos token to encode instead: give a prompt"
            )
        return Sample(index, prompt, [*ids[:room], *end], max(0, len(ids) - room))

    @torch.inference_mode()
    def stream(self, sample: Sample) -> Iterator[str]:
        """Yield the text of `sample` as it is generated, in whole characters, and fill in its fields.

        Holds back text that may be the beginning of a stop string. Raises NonFiniteError if the model returns NaN.
        """
        begin = time.perf_counter()
        continuation = Continuation(self, sample, *self._open_window(sample.prompt_ids), begin)
        while True:
            text = continuation.choose()
            if text:
                yield text
            if continuation.finished:
                return
            continuation.resume(continuation.window.append(continuation.token))

    @torch.inference_mode()
    def write(self, samples: Iterable[Sample], rows: int = 16) -> Iterator[Sample]:
        """Generate many samples, `rows` at a time, and yield each when it is finished, with the same text as `stream`.

        With a compiled step, samples of different lengths advance together (continuous batching): each weight is read
        once for all of them, and a new sample starts when one ends. Without it, samples run one after another.
        Raises NonFiniteError if the model returns NaN.
        """
        if self.step is None:
            for sample in samples:
                for _ in self.stream(sample):
                    pass
                yield sample
            return
        waiting, running = deque(samples), []
        while waiting or running:
            while waiting and len(running) < rows:
                sample, begin = waiting.popleft(), time.perf_counter()
                window, logits = self._open_window(sample.prompt_ids)
                assert isinstance(window, Window), "an encoder-decoder has no compiled step"
                running.append(Continuation(self, sample, window.copy(), logits, begin))
            for row in running:
                row.choose()
            yield from (row.sample for row in running if row.finished)
            running = [row for row in running if not row.finished]
            together = append_together(self.step, [row.window for row in running], [row.token for row in running])
            for row, logits in zip(running, together, strict=True):
                row.resume(logits)

    def _open_window(self, ids: list[int]) -> tuple[Window | Answer, Tensor]:
        """Return the context and logits after the prompt; samples of one prompt share its cached keys, bit for bit."""
        if self._window is None or self._window.prompt != ids:
            if isinstance(self.model, Seq2SeqLM):
                self._window = Answer(self.model, ids, self.config.max_new_tokens)
            else:
                self._window = Window(self.model, ids, self.config.max_new_tokens, self.step)
        return self._window, self._window.restart()
