"""What reaches the user: streamed text or JSON lines on standard output, remarks on standard error, the prompt loop."""

import contextlib
import json
import re
import sys
from collections import deque

from .decode import Sample, TextGenerator

# A model of bytes can write any control character; a terminal would obey it (C0 but tab and newline, DEL, C1).
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
        if hasattr(sys.stdout, "reconfigure"):
            # A file or pipe is always UTF-8; a terminal keeps its encoding and shows ? for what it cannot.
            sys.stdout.reconfigure(encoding=None if self.terminal else "utf-8", errors="replace")

    def answer(self, prompt: str) -> None:
        """Generate and print all samples of `prompt`; `self.text` becomes the prompt and the last of them.

        Raises KeyboardInterrupt after what was made until then is printed.
        """
        config = self.generator.config
        if self.as_json and config.num_samples > 1:
            self.answer_all([prompt])
            return
        first, self.text = self._next_index(), prompt
        for i in range(config.num_samples):
            sample = self.generator.sample(prompt, first + i)
            if i == 0:
                self._say_dropped(sample)
            if config.num_samples > 1:
                self.write(f"--- {i + 1} of {config.num_samples} ---\n")
            try:
                self.stream(sample)
            finally:
                self.text = prompt + sample.text
                self.samples.append(sample)
            self._say_made(sample)

    def answer_all(self, prompts: list[str]) -> None:
        """Generate all samples of all prompts together and print them in order as JSON lines.

        Raises KeyboardInterrupt after what was made until then is printed.
        """
        samples = []
        for prompt in prompts:
            first = self._next_index()
            samples += [self.generator.sample(prompt, first + i) for i in range(self.generator.config.num_samples)]
            self._say_dropped(samples[-1])
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
        """The first sample's index of the next prompt: given again, after Ctrl-C too, it gets other random numbers."""
        self.prompts += 1
        return (self.prompts - 1) * self.generator.config.num_samples

    def _print_record(self, sample: Sample) -> None:
        self.text = sample.prompt + sample.text
        self.samples.append(sample)
        self.write(json.dumps(self.record(sample), ensure_ascii=False) + "\n")
        self._say_made(sample)

    def _say_dropped(self, sample: Sample) -> None:
        if sample.prompt_tokens_dropped:
            part = "last" if self.generator.model.config.is_encoder_decoder else "first"
            remark(
                f"the prompt is longer than the context of {self.context} tokens: "
                f"its {part} {sample.prompt_tokens_dropped} are left out"
            )

    def _say_made(self, sample: Sample) -> None:
        if sample.window_slides:
            remark(
                f"the context of {self.context} tokens was full {sample.window_slides} times; "
                f"each time the text went on from the last {max(1, self.context // 2)}"
            )
        if self.show_speed:
            remark(
                f"{len(sample.ids)} tokens, {sample.tokens_per_second:.1f} tokens/s, "
                f"first after {sample.seconds_to_first_token:.3f} s, ended by: {sample.finish_reason}"
            )

    def stream(self, sample: Sample) -> None:
        """Print a sample while it is made; as JSON, when it is finished or interrupted."""
        if self.echo and not self.as_json:
            self.write(sample.prompt)
        interrupted = False
        try:
            for piece in self.generator.stream(sample):
                if not self.as_json:
                    self.write(piece)
        except KeyboardInterrupt:
            interrupted = True
        self.write(json.dumps(self.record(sample), ensure_ascii=False) + "\n" if self.as_json else "\n")
        if interrupted:
            raise KeyboardInterrupt

    def write(self, text: str) -> None:
        sys.stdout.write(CONTROL.sub("\ufffd", text) if self.terminal else text)
        sys.stdout.flush()

    def record(self, sample: Sample) -> dict:
        """What --json prints. `text` leaves the prompt out; `ids` are all tokens generated, an end token included."""
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


def remark(text: str) -> None:
    print(f"generate: {text}", file=sys.stderr, flush=True)


def interact(printer: Printer) -> None:
    """Answer one line of standard input after another until it ends (Ctrl-D).

    Ctrl-C ends the current answer only. An empty line continues the text before it.
    """
    if sys.stdin is None:
        return
    terminal = sys.stdin.isatty()
    if terminal:
        remark("a line is a prompt, an empty line goes on with the last text; Ctrl-C stops a text, Ctrl-D ends")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing)
    if hasattr(sys.stdin, "reconfigure"):
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
            remark("interrupted")
    if terminal:
        print()
