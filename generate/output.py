"""Print streamed text or JSON lines on standard output and notes on standard error."""

import io
import json
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from .decode import Sample, TextGenerator

# Control characters that a terminal would act on: C0 except tab and newline, DEL, C1. A model can generate any byte.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Printer:
    """Prints the samples of one prompt after another."""

    def __init__(self, generator: TextGenerator, as_json: bool = False, echo: bool = False, verbose: bool = False):
        self.generator, self.as_json, self.echo = generator, as_json, echo
        self.out: Any = sys.stdout  # or another file, for answer_all
        self.terminal = sys.stdout.isatty()
        self.show_speed = verbose or sys.stderr.isatty()
        self.asked: Counter[str] = Counter()
        self.text = ""
        self.context = generator.model.config.max_position_embeddings
        self.samples: list[Sample] = []
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Write UTF-8 to files and pipes; a terminal keeps its encoding and shows ? for other characters.
            sys.stdout.reconfigure(encoding=None if self.terminal else "utf-8", errors="replace")

    def answer(self, prompt: str) -> None:
        """Generate and print all samples of `prompt`. Sets `self.text` to the prompt and the last sample.

        On Ctrl-C, prints what was generated so far, then raises KeyboardInterrupt.
        """
        config = self.generator.config
        if self.as_json and config.num_samples > 1:
            self.answer_all([prompt])
            return
        first, self.text = self._next_index(prompt), prompt
        for i in range(config.num_samples):
            sample = self.generator.sample(prompt, first + i)
            if i == 0:
                self._note_dropped(sample)
            if config.num_samples > 1:
                self.write(f"--- {i + 1} of {config.num_samples} ---\n")
            try:
                self.stream(sample)
            finally:
                self.text = prompt + sample.text
                self.samples.append(sample)
            self._note_result(sample)

    def answer_all(
        self,
        prompts: Sequence[str | None],
        numbered: bool = False,
        skip: int = 0,
        row_done: Callable[[int], None] = lambda row: None,
    ) -> None:
        """Generate all samples of all prompts in batches and print them in order as JSON lines.

        numbered: the prompts are the rows of a file, and each line has the number of its row, from 1. A blank row
        (None) gets a line without a text. The first `skip` rows are left out; row_done(number) is called after each of
        the others. On Ctrl-C, prints what was generated so far, but not to a file, then raises KeyboardInterrupt.
        """
        waiting: deque[tuple[int, Sample | None]] = deque()
        for row, prompt in enumerate(prompts, start=1):
            if row <= skip:
                self._next_index(prompt)  # the samples of a repeated prompt keep their random numbers
                continue
            waiting += [(row if numbered else 0, sample) for sample in self._samples(prompt)]
        if numbered:
            # All rows count, finished ones too: a continued file must not differ.
            self.generator.share_beginning(prompt for prompt in prompts if prompt is not None)
        finished, complete = set(), False

        def print_next() -> None:
            row, sample = waiting.popleft()
            self._print_record(row, sample)
            if not waiting or waiting[0][0] != row:
                row_done(row)

        try:
            for done in self.generator.write([sample for _, sample in waiting if sample is not None]):
                finished.add(id(done))
                while waiting and ((sample := waiting[0][1]) is None or id(sample) in finished):
                    print_next()
            complete = True
        finally:
            while waiting and (complete or self.out is sys.stdout):
                print_next()

    def _samples(self, prompt: str | None) -> list[Sample] | list[None]:
        """The samples to generate from one prompt; None for each sample of a blank row."""
        count = self.generator.config.num_samples
        if prompt is None:
            return [None] * count
        first = self._next_index(prompt)
        samples = [self.generator.sample(prompt, first + i) for i in range(count)]
        self._note_dropped(samples[-1])
        return samples

    def _next_index(self, prompt: str | None) -> int:
        """Return the index of the prompt's first sample. Each repetition of a prompt gets other random numbers.

        It does not depend on other prompts, so neither does a text.
        """
        count = self.generator.config.num_samples
        self.asked[prompt or ""] += 1
        return (self.asked[prompt or ""] - 1) * count

    def _print_record(self, row: int, sample: Sample | None) -> None:
        number = {"row": row} if row else {}
        if sample is None:
            self.write(json.dumps({**number, "sample": None, "prompt": "", "text": None}) + "\n")
            return
        self.text = sample.prompt + sample.text
        self.samples.append(sample)
        self.write(json.dumps({**number, **self.record(sample)}, ensure_ascii=False) + "\n")
        self._note_result(sample)

    def _note_dropped(self, sample: Sample) -> None:
        if sample.prompt_tokens_dropped:
            part = "last" if self.generator.model.config.is_encoder_decoder else "first"
            note(
                f"the prompt is longer than the context of {self.context} tokens: "
                f"its {part} {sample.prompt_tokens_dropped} were dropped"
            )

    def _note_result(self, sample: Sample) -> None:
        if sample.window_slides:
            note(
                f"the context of {self.context} tokens was full {sample.window_slides} times; "
                f"each time, generation continued from the last {max(1, self.context // 2)}"
            )
        if self.show_speed:
            note(
                f"{len(sample.ids)} tokens, {sample.tokens_per_second:.1f} tokens/s, "
                f"first after {sample.seconds_to_first_token:.3f} s, ended by: {sample.finish_reason}"
            )

    def stream(self, sample: Sample) -> None:
        """Print a sample as it is generated; as JSON, print it when it is finished or interrupted."""
        if self.echo and not self.as_json:
            self.write(sample.prompt)
        interrupted = False
        try:
            for text in self.generator.stream(sample):
                if not self.as_json:
                    self.write(text)
        except KeyboardInterrupt:
            interrupted = True
        self.write(json.dumps(self.record(sample), ensure_ascii=False) + "\n" if self.as_json else "\n")
        if interrupted:
            raise KeyboardInterrupt

    def write(self, text: str) -> None:
        self.out.write(CONTROL.sub("\ufffd", text) if self.terminal and self.out is sys.stdout else text)
        self.out.flush()

    def record(self, sample: Sample) -> dict:
        """Return what --json prints. `text` excludes the prompt; `ids` are all generated tokens, including eos."""
        logprobs = {"logprob": sum(sample.logprobs), "logprobs": sample.logprobs} if sample.logprobs else {}
        return {
            "sample": sample.index,
            "seed": self.generator.config.seed,
            "prompt": sample.prompt,
            "text": sample.text,
            "ids": sample.ids,
            **logprobs,
            "finish_reason": sample.finish_reason,
            "prompt_tokens": len(sample.prompt_ids),
            "prompt_tokens_dropped": sample.prompt_tokens_dropped,
            "window_slides": sample.window_slides,
            "tokens_per_second": round(sample.tokens_per_second, 2),
        }


def note(text: str) -> None:
    print(f"generate: {text}", file=sys.stderr, flush=True)
