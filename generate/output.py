"""Print streamed text or JSON lines on standard output and notes on standard error, and run the prompt loop."""

import contextlib
import io
import json
import re
import sys
from collections import deque

from .decode import Sample, TextGenerator

# Control characters that a terminal would act on: C0 except tab and newline, DEL, C1. A model can generate any byte.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Printer:
    """Prints the samples of one prompt after another."""

    def __init__(self, generator: TextGenerator, as_json: bool = False, echo: bool = False, verbose: bool = False):
        self.generator, self.as_json, self.echo = generator, as_json, echo
        self.terminal = sys.stdout.isatty()
        self.show_speed = verbose or sys.stderr.isatty()
        self.prompts, self.text = 0, ""
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
        first, self.text = self._next_index(), prompt
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

    def answer_all(self, prompts: list[str]) -> None:
        """Generate all samples of all prompts in batches and print them in order as JSON lines.

        On Ctrl-C, prints what was generated so far, then raises KeyboardInterrupt.
        """
        samples = []
        for prompt in prompts:
            first = self._next_index()
            samples += [self.generator.sample(prompt, first + i) for i in range(self.generator.config.num_samples)]
            self._note_dropped(samples[-1])
        waiting, finished = deque(samples), set()
        try:
            for sample in self.generator.write(samples):
                finished.add(sample.index)
                while waiting and waiting[0].index in finished:
                    self._print_record(waiting.popleft())
        finally:
            for sample in waiting:
                self._print_record(sample)

    def _next_index(self) -> int:
        """Return the index of the next prompt's first sample, so that a repeated prompt gets other random numbers."""
        self.prompts += 1
        return (self.prompts - 1) * self.generator.config.num_samples

    def _print_record(self, sample: Sample) -> None:
        self.text = sample.prompt + sample.text
        self.samples.append(sample)
        self.write(json.dumps(self.record(sample), ensure_ascii=False) + "\n")
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
        sys.stdout.write(CONTROL.sub("\ufffd", text) if self.terminal else text)
        sys.stdout.flush()

    def record(self, sample: Sample) -> dict:
        """Return what --json prints. `text` excludes the prompt; `ids` are all generated tokens, including eos."""
        return {
            "sample": sample.index,
            "seed": self.generator.config.seed,
            "prompt": sample.prompt,
            "text": sample.text,
            "ids": sample.ids,
            "finish_reason": sample.finish_reason,
            "prompt_tokens": len(sample.prompt_ids),
            "prompt_tokens_dropped": sample.prompt_tokens_dropped,
            "window_slides": sample.window_slides,
            "tokens_per_second": round(sample.tokens_per_second, 2),
        }


def note(text: str) -> None:
    print(f"generate: {text}", file=sys.stderr, flush=True)


def interact(printer: Printer) -> None:
    """Read prompts from standard input, one per line, and answer them until Ctrl-D.

    Ctrl-C ends only the current answer. An empty line continues the last text.
    """
    if sys.stdin is None:
        return
    terminal = sys.stdin.isatty()
    if terminal:
        note("type a prompt; an empty line continues the last text; Ctrl-C stops a text, Ctrl-D quits")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            continue
        try:
            printer.answer(line or printer.text)
        except KeyboardInterrupt:
            note("interrupted")
    if terminal:
        print()
