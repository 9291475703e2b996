"""`--interactive`: read prompts and commands from standard input and answer them."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mini_llm.engine.config import build_config, load_config
from mini_llm.engine.errors import ConfigError

from .config import GenerateConfig
from .output import Printer, note

HELP = """Type a prompt; an empty line continues the last text. Ctrl-C stops a text, Ctrl-D quits.
  /set KEY=VALUE   change a setting, for example /set temperature=0; /set alone shows all
  /top [N]         the most likely tokens in place of the last one, with probabilities
  /undo            go back to the text before the last answer
  /save FILE       write the last text, with its prompt, to a file
  /help            this list
A prompt that begins with / is written with two: //usr/bin"""
COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?")
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
# readline must not count the bytes of an escape sequence as columns.
PROMPT = f"\x01{BOLD}\x02> "


class Session:
    """The state of the prompt loop: the texts before each answer, for /undo."""

    def __init__(self, printer: Printer) -> None:
        self.printer, self.before = printer, list[str]()
        self.commands: dict[str, Callable[[str], None]] = {
            name: getattr(self, f"_{name}") for name in ("help", "set", "undo", "top", "save")
        }

    def read(self, line: str) -> None:
        """Run a command or answer a prompt. Ctrl-C ends only the text."""
        command = COMMAND.fullmatch(line.strip())
        if command is not None:
            name, argument = command[1], (command[2] or "").strip()
            run = self.commands.get(name)
            if run is None:
                note(f"/{name}: no such command; /help lists them, and //{name} is a prompt that begins with /")
                return
            try:
                run(argument)
            except ConfigError as error:
                note(str(error))
            return
        prompt = line[1:] if line.startswith("//") else line
        self.before.append(self.printer.text)
        try:
            self.printer.answer(prompt or self.printer.text)
        except KeyboardInterrupt:
            note("interrupted")

    def _help(self, _: str) -> None:
        print(HELP, file=sys.stderr)

    def _set(self, argument: str) -> None:
        generator = self.printer.generator
        if argument:
            overrides = re.split(r"\s+(?=[\w.]+=)", argument)
            given = load_config(GenerateConfig, overrides=overrides).model_dump(exclude_unset=True)
            generator.configure(build_config(GenerateConfig, {**generator.config.model_dump(), **given}, "/set"))
        else:
            for key, value in generator.config.model_dump().items():
                print(f"  {key} = {value!r}", file=sys.stderr)

    def _undo(self, _: str) -> None:
        if not self.before:
            note("there is nothing to undo")
            return
        self.printer.text = self.before.pop()
        note(f"the text is now {self.printer.text[-60:]!r}; an empty line continues it")

    def _top(self, argument: str) -> None:
        sample = self.printer.samples[-1] if self.printer.samples else None
        if sample is None or not sample.ids:
            note("there is no generated token yet")
            return
        count = int(argument) if argument.isdecimal() and int(argument) else 10
        generator = self.printer.generator
        raw, filtered = generator.last_distribution(sample)
        best = raw.topk(min(count, len(raw))).indices.tolist()
        chosen = sample.ids[-1]
        print("   model  sampled  token", file=sys.stderr)
        for token in best if chosen in best else [*best, chosen]:
            spelled = repr(generator.tokenizer.decode([token]) or f"<token {token}>")
            mark = "  <- chosen" if token == chosen else ""
            print(f"{raw[token]:8.4f} {filtered[token]:8.4f}  {spelled}{mark}", file=sys.stderr)

    def _save(self, argument: str) -> None:
        if not argument:
            note("/save needs a file: /save text.txt")
            return
        try:
            Path(os.path.expanduser(argument)).write_text(self.printer.text, encoding="utf-8", errors="replace")
        except OSError as error:
            note(f"/save {argument}: cannot write it ({error.strerror or error})")
        else:
            note(f"{argument}: {len(self.printer.text):,} characters")


def interact(printer: Printer) -> None:
    """Read prompts and commands from standard input, one per line, and answer them until Ctrl-D.

    Ctrl-C ends only the current answer. An empty line continues the last text. On a terminal, prompts are bold, and
    the arrow keys bring back earlier ones.
    """
    if sys.stdin is None:
        return
    terminal = sys.stdin.isatty()
    if terminal:
        note("type a prompt; an empty line continues the last text; /help lists commands; Ctrl-D quits")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing and history)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    session = Session(printer)
    bold = terminal and sys.stdout.isatty()
    while True:
        try:
            line = input(PROMPT if bold else "> " if terminal else "")
        except EOFError:
            break
        except KeyboardInterrupt:
            print()
            continue
        finally:
            if bold:
                print(PLAIN, end="", flush=True)
        try:
            session.read(line)
        except KeyboardInterrupt:
            note("interrupted")
    if terminal:
        print()
