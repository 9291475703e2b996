"""The decoder loop: generate samples one at a time as a stream, or many in batches."""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.kernels.decode import CompiledStep
from mini_llm.model import CausalLM, Seq2SeqLM
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.framing import text_frame
from mini_llm.tokenization.tokenizer import Tokenizer

from .beams import Beam, search
from .config import GenerateConfig
from .context import Answer, Window, append_together
from .lookup import Lookup
from .sampling import NEVER, Controls, filter_scores, next_token, random_stream
from .stop import StopFilter

# Tokens; for less than this, reading every prompt as a whole is as fast.
SHORTEST_BEGINNING = 32


@dataclass
class Sample:
    """One generated text: its prompt and what has been generated so far.

    `ids` are all generated tokens, including an eos token and the tokens of a stop string; `text` excludes both.
    `finish_reason`: "end" (the model ended the text), "stop" (a stop string), "length" (max_new_tokens) or
    "interrupted" (not finished). `window_slides` counts how often the start of the text left the context. `logprobs`
    holds the model's own log-probability of each token, before any filter, if GenerateConfig asks for it.
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
    logprobs: list[float] = field(default_factory=list)

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
        self.matcher = generator.grammar.start() if generator.grammar else None
        self.lookup = Lookup(sample.prompt_ids, self.config.lookup) if self.config.lookup else None
        self.token, self.finished = -1, False

    def choose(self) -> str:
        """Sample the next token from `logits`. Return the text that is now final; the last token returns the rest."""
        sample, generator = self.sample, self.generator
        allowed = self.matcher.allowed() if self.matcher else None
        ids, written = self.history[: self.count], len(sample.ids)
        token = next_token(
            self.logits, ids, generator.suppressed, self.config, self.rng, generator.controls, written, allowed
        )
        if self.config.logprobs:
            sample.logprobs.append(float(self.logits.float().log_softmax(-1)[token]))
        self.history[self.count] = self.token = token
        self.count += 1
        sample.ids.append(token)
        if self.lookup:
            self.lookup.push(token)
        sample.seconds = time.perf_counter() - self.begin
        sample.seconds_to_first_token = sample.seconds_to_first_token or sample.seconds
        ended = token in generator.end_ids
        text = self.stop.push("" if ended else self.decoder.push(token))
        if self.matcher and not ended:
            ended = self.matcher.push(token)
        self.finished = ended or self.stop.stopped or len(sample.ids) == self.config.max_new_tokens
        if self.finished:
            text += self.stop.push(self.decoder.flush()) + self.stop.flush()
            sample.finish_reason = "stop" if self.stop.stopped else "end" if ended else "length"
        sample.text += text
        return text

    def advance(self) -> None:
        """Append the chosen token to the context, with guesses of the next ones."""
        guesses = self.lookup.guess() if self.lookup and not self.window.knows(self.token) else ()
        self.resume(self.window.append(self.token, guesses))

    def resume(self, logits: Tensor) -> None:
        """Continue with the logits (V,) after the chosen token."""
        self.logits, self.sample.window_slides = logits, self.window.slides


class TextGenerator:
    """A causal model or an encoder-decoder with its tokenizer and sampler settings.

    A prompt gets the special tokens of the tokenizer's template (mini_llm/tokenization/framing.py). An empty one starts
    with the bos token.

    With a tokenizer trained here, never samples unk, bos, pad, mask, cls and sep tokens, nor ids that only pad the
    vocabulary (at or above `tokenizer.vocab_size`), and a text ends at the eos token or at any of `end_ids`. With a
    tokenizer.json of another project, does as transformers: samples any id, and ends at any of `end_ids`, or at the eos
    token if there are none.

    With a `step`, the model itself only reads prompts, and the compiled step generates.
    Raises CheckpointError if the tokenizer has more tokens than the model, or lacks a token of its template.
    """

    def __init__(
        self,
        model: CausalLM | Seq2SeqLM,
        tokenizer: Tokenizer | FastTokenizer,
        config: GenerateConfig,
        end_ids: Collection[int] = (),
        step: CompiledStep | None = None,
    ) -> None:
        size = model.config.vocab_size
        if tokenizer.vocab_size > size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only {size}: they do not match. "
                "Copy the tokenizer files of the training run into the model directory"
            )
        self.model, self.tokenizer, self.step = model, tokenizer, step
        self.frame = text_frame(tokenizer, "seq2seq" if model.config.is_encoder_decoder else "causal")
        self.end_ids = {i for i in (*end_ids, tokenizer.eos_id) if i is not None}
        # Some tokenizers use one token as bos, pad and eos; never suppress an eos token.
        names = ("unk_id", "bos_id", "pad_id", "mask_id", "cls_id", "sep_id")
        special = {getattr(tokenizer, name) for name in names} - {None} - self.end_ids
        self.suppressed_ids = sorted(special | (set(range(tokenizer.vocab_size, size)) - self.end_ids))
        if tokenizer.frame is not None:
            self.end_ids, self.suppressed_ids = set(end_ids) or self.end_ids, []
        self.suppressed = torch.tensor(self.suppressed_ids, dtype=torch.int64, device=model.lm_head.weight.device)
        self._token_trie: Any = None
        self._beginning: Window | None = None
        self.configure(config)

    def configure(self, config: GenerateConfig) -> None:
        """Use `config` from the next sample on. Raises ConfigError for a grammar that cannot be used."""
        self.config = config
        self._window: Window | Answer | None = None
        self._beams: tuple[Window | Answer, list[Beam]] | None = None
        device = self.suppressed.device
        ends = torch.tensor(sorted(self.end_ids), dtype=torch.int64, device=device)
        self.controls = Controls(bias_of_texts(config.logit_bias, self.tokenizer), ends)
        self.grammar = None
        if config.regex is not None or config.json_schema is not None:
            # llguidance is loaded only where it is used.
            from .grammar import Grammar, token_trie

            if self._token_trie is None:
                self._token_trie = token_trie(self.tokenizer, self.model.config.vocab_size, self.end_ids)
            self.grammar = Grammar(self._token_trie, config, self.model.config.vocab_size, device)

    @torch.inference_mode()
    def share_beginning(self, prompts: Iterable[str]) -> int:
        """Compute the tokens that all `prompts` begin with once, for the samples from now on, if that pays.

        Returns their number, or 0. Leaves out prompts that are truncated. The logits of a prompt then differ by
        rounding from those without.
        """
        rows = [s.prompt_ids for s in map(self.sample, dict.fromkeys(prompts)) if not s.prompt_tokens_dropped]
        self._beginning = self._window = None
        if len(rows) < 2 or isinstance(self.model, Seq2SeqLM):
            return 0
        # Some position must be left to compute the logits from.
        first, last = min(rows), max(rows)
        most = min(map(len, rows)) - 1
        shared = next((i for i in range(most) if first[i] != last[i]), most)
        if shared < SHORTEST_BEGINNING:
            return 0
        self._beginning = Window(self.model, first[:shared], 0)
        return shared

    def sample(self, prompt: str, index: int = 0) -> Sample:
        """Return a sample to pass to `stream`, with the tokens of the prompt truncated to the context.

        A causal model keeps the last `context - max_new_tokens` tokens of a prompt longer than its context, but at
        least half a context. An encoder-decoder keeps the first tokens, one context including the eos token.
        Raises ConfigError for an empty prompt when the tokenizer has no token to start from.
        """
        if self.model.config.is_encoder_decoder:
            return self._question(prompt, index)
        before, after = self.frame
        ids = [*before, *self.tokenizer.encode(prompt), *after]
        if not ids and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id]
        if not ids:
            raise ConfigError("the prompt is empty, and this tokenizer has no bos token to start from: give a prompt")
        context, kept = self.model.config.max_position_embeddings, len(ids)
        if kept > context:
            kept = max(1, context // 2, context - self.config.max_new_tokens)
        return Sample(index, prompt, ids[-kept:], len(ids) - kept)

    def _question(self, prompt: str, index: int) -> Sample:
        (before, after), ids = self.frame, self.tokenizer.encode(prompt)
        room = self.model.config.max_position_embeddings - len(before) - len(after)
        if not [*before, *ids, *after]:
            raise ConfigError(
                "the prompt is empty, and this tokenizer has no eos token to encode instead: give a prompt"
            )
        return Sample(index, prompt, [*before, *ids[:room], *after], max(0, len(ids) - room))

    @torch.inference_mode()
    def stream(self, sample: Sample) -> Iterator[str]:
        """Yield the text of `sample` as it is generated, in whole characters, and fill in its fields.

        Holds back text that may be the beginning of a stop string. Raises NonFiniteError if the model returns NaN.
        """
        begin = time.perf_counter()
        if self.config.num_beams > 1:
            self._fill_from_beam(sample, begin)
            yield sample.text
            return
        continuation = Continuation(self, sample, *self._open_window(sample.prompt_ids), begin)
        while True:
            text = continuation.choose()
            if text:
                yield text
            if continuation.finished:
                return
            continuation.advance()

    @torch.inference_mode()
    def write(self, samples: Iterable[Sample], rows: int = 16) -> Iterator[Sample]:
        """Generate many samples, `rows` at a time, and yield each when it is finished, with the same text as `stream`.

        With a compiled step, samples of different lengths advance together (continuous batching): each weight is read
        once for all of them, and a new sample starts when one ends. Without it, samples run one after another.
        Raises NonFiniteError if the model returns NaN.
        """
        if self.step is None or self.config.num_beams > 1:
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
            if len(running) == 1:
                running[0].advance()
                continue
            together = append_together(self.step, [row.window for row in running], [row.token for row in running])
            for row, logits in zip(running, together, strict=True):
                row.resume(logits)

    @torch.inference_mode()
    def last_distribution(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return the probabilities (V,) of the last token of `sample`: those of the model, and those after filters.

        Recomputes them; a grammar is not applied.
        """
        *ids, _ = sample.ids
        window, logits = self._open_window(sample.prompt_ids)
        window = window.copy()
        for token in ids:
            logits = window.append(token)
        history = torch.tensor([*window.history, *ids], device=logits.device)
        scores = filter_scores(logits, history, self.suppressed, self.config, self.controls, written=len(ids))
        if self.config.temperature == 0 or self.config.num_beams > 1:
            scores = scores.masked_fill(scores < scores.max(), NEVER)
        return logits.float().softmax(-1), scores.softmax(-1)

    def _fill_from_beam(self, sample: Sample, begin: float) -> None:
        """Complete `sample` with one of the best texts: number `index` modulo `num_samples`."""
        window, logits = self._open_window(sample.prompt_ids)
        if self._beams is None or self._beams[0] is not window:
            self._beams = window, search(self, window, logits, self._hits_stop)
        rank = sample.index % self.config.num_samples
        if rank >= len(self._beams[1]):
            raise ConfigError(f"the beam search found only {len(self._beams[1])} texts; lower --num-samples")
        beam = self._beams[1][rank]
        sample.ids, sample.logprobs, sample.finish_reason = list(beam.ids), list(beam.logprobs), beam.ended_by
        sample.text, sample.window_slides = self._text(beam.ids)[0], beam.slides
        sample.seconds = sample.seconds_to_first_token = time.perf_counter() - begin

    def _text(self, ids: list[int]) -> tuple[str, bool]:
        """Return the text of generated ids before the first stop string, and whether there is one."""
        stop = StopFilter(self.config.stop)
        ended = ids[-1] in self.end_ids
        text = stop.push(self.tokenizer.decode(ids[:-1] if ended else ids))
        return text + stop.flush(), stop.stopped

    def _hits_stop(self, ids: list[int]) -> bool:
        return bool(self.config.stop) and self._text(ids)[1]

    def _open_window(self, ids: list[int]) -> tuple[Window | Answer, Tensor]:
        """Return the context and logits after the prompt; samples of one prompt share its cached keys, bit for bit."""
        if self._window is None or self._window.prompt != ids:
            if isinstance(self.model, Seq2SeqLM):
                self._window = Answer(self.model, ids, self.config.max_new_tokens)
            else:
                self._window = Window(self.model, ids, self.config.max_new_tokens, self.step, self._beginning)
        return self._window, self._window.restart()


def bias_of_texts(bias: dict[str, float], tokenizer: Tokenizer | FastTokenizer) -> dict[tuple[int, ...], float]:
    """Return the bias of the token sequences of each text, as it is and with a space before it."""
    forms = {form: value for text, value in bias.items() for form in (text, f" {text.lstrip(' ')}")}
    found = {tuple(tokenizer.encode(form)): value for form, value in forms.items()}
    return {ids: value for ids, value in found.items() if ids}
