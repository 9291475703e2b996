"""Shared by all command lines: the Typer application, settings in help and completion, exit codes, error messages."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import islice
from typing import Annotated, Any, NoReturn

import typer
from typer.completion import completion_init
from typer.core import TyperCommand, TyperGroup

from mini_llm.engine.errors import ConfigError
from mini_llm.stages import local_commands

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# configs/completion.bash sets this variable: the command line then prints completions.
COMPLETE = "MINI_LLM_COMPLETE"
HELP_OPTIONS = ["-h", "--help"]
EXIT_CODES = "Exit codes: 0 done, 2 usage or config, 3 data, 4 checkpoint or model, 5 non-finite loss, 130/143 signal."


def program(command: str) -> str:
    """What the user types for `command`: "python -m pretrain" in a checkout, "mini-llm pretrain" once installed."""
    return local_commands(f"python -m {command}").strip()


def _print_version(given: bool) -> None:
    if given:
        print(f"mini-llm {import_module('mini_llm').__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class SettingsCommand(TyperCommand):
    """A command that takes settings as KEY=VALUE: --help lists them all, and an option that is one is explained."""

    load_config_class: Callable[[], Any]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, texts_as_arguments(self._settings_as_arguments(args), self.params))
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":
                self._explain(error, given)
            raise

    def _settings_as_arguments(self, args: list[str]) -> list[str]:
        """Accept --KEY=VALUE, as the sweeps of W&B write settings (`${args}`): as KEY=VALUE, or as the option KEY."""
        own = {name for parameter in self.params for name in parameter.opts}
        options, end = args, len(args)
        if "--" in args:
            end = args.index("--")
            options = args[:end]
        if not any(option.startswith("--") and option.partition("=")[0] not in own for option in options):
            return args
        from mini_llm.engine.config import is_key

        rest, settings = [], []
        for option in options:
            key, sign, value = option.removeprefix("--").partition("=")
            as_option = f"--{key.replace('_', '-')}"
            if not (option.startswith("--") and sign) or f"--{key}" in own:
                rest.append(option)
            elif as_option in own:
                rest.append(f"{as_option}={value}")
            elif is_key(type(self).load_config_class(), key):
                settings.append(f"{key}={value}")
            else:
                rest.append(option)
        return [*rest, *args[end:], *settings]

    def _explain(self, error: Any, arguments: list[str]) -> None:
        """Add the setting to type to the message of an unknown option."""
        from mini_llm.engine.config import explain_option

        hint = explain_option(type(self).load_config_class(), error.option_name, arguments)
        if not hint and any("--prompt" in parameter.opts for parameter in self.params):
            hint = f"a prompt that begins with '-' is written --prompt='{error.option_name}...'"
        if hint:
            error.message, error.possibilities = f"{error.message}; {hint}", None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # Click would print [[CONFIG.yaml] [KEY=VALUE]...]...
        return [piece.replace("[[", "[").replace("...]...", "...") for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        self.print_settings()

    def print_settings(self) -> None:
        """Print every setting by section."""
        from mini_llm.engine.settings_page import print_settings

        print_settings(type(self).load_config_class())


def settings_command(load_config_class: Callable[[], Any]) -> type[SettingsCommand]:
    """The class of a command with the settings of `load_config_class()`, which is called when they are needed."""
    return type("Command", (SettingsCommand,), {"load_config_class": staticmethod(load_config_class)})


def settings_argument(load_config_class: Callable[[], Any], metavar: str = "[CONFIG.yaml] [KEY=VALUE]...") -> Any:
    """The positional arguments of such a command: an optional YAML file and settings, with completion."""

    def complete(incomplete: str) -> list[str]:
        from mini_llm.engine.settings_page import complete_setting

        return complete_setting(load_config_class(), incomplete)

    return typer.Argument(metavar=metavar, help="Settings, listed below.", show_default=False, autocompletion=complete)


def text_command() -> type[TyperCommand]:
    """The class of a command with a text among its arguments, which may begin with '-'."""

    class TextCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, texts_as_arguments(args, self.params))

    return TextCommand


def texts_as_arguments(args: list[str], parameters: Sequence[Any]) -> list[str]:
    """`args` with texts such as "- item" behind "--", so that they are no options: no option has a space in it."""
    takes_value = {name for p in parameters if p.param_type_name == "option" and not p.is_flag for name in p.opts}
    options: list[str] = []
    arguments: list[str] = []
    found = False
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            arguments += rest
        elif not arg.startswith("-") or arg == "-":
            arguments.append(arg)
        elif re.search(r"\s", arg.partition("=")[0]):
            arguments.append(arg)
            found = True
        else:
            options.append(arg)
            options += islice(rest, 1 if arg in takes_value else 0)
    return [*options, "--", *arguments] if found else args


class TrainByDefault(TyperGroup):
    """A group whose command `train` runs when the arguments name no command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names, *(o for p in self.params for o in p.opts)}
        # The first word is completed by shell_complete below.
        named = args[0] in known if args else ctx.resilient_parsing
        return super().parse_args(ctx, args if named else ["train", *args])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Commands, and what `train` takes."""
        train = self.commands["train"]
        arguments = train.make_context(ctx.info_name, [], resilient_parsing=True)
        own = [item for item in super().shell_complete(ctx, incomplete) if not item.value.startswith("-")]
        return [*own, *train.shell_complete(arguments, incomplete)] + [
            item
            for parameter in train.params
            if not parameter.opts[0].startswith("-")
            for item in parameter.shell_complete(arguments, incomplete)
        ]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help of `train`, with the other commands before the settings."""
        from rich.console import Console
        from rich.table import Table

        train: Any = self.commands["train"]
        with train.context_class(train, info_name=ctx.info_name, help_option_names=ctx.help_option_names) as own:
            TyperCommand.format_help(train, own, formatter)
        console, table = Console(highlight=False), Table.grid(padding=(0, 2))
        for name, command in self.commands.items():
            if name != "train":
                table.add_row(f"  {ctx.info_name} {name}", command.short_help or command.get_short_help_str(100))
        console.print("Other commands", style="bold")
        console.print(table)
        console.print()
        train.print_settings()


def command_app(help_text: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A Typer application without Typer's tracebacks and its installer of completions."""
    # Typer would install completion for a program called "python -m ..."; configs/completion.bash handles that.
    return typer.Typer(
        cls=cls, help=help_text, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False
    )


def run_app(app: typer.Typer, stage: str, arguments: list[str] | None = None) -> None:
    """Run `app` as the command `stage`; a user's error becomes one message and its exit code.

    `arguments`: None takes those of this process and ends the process. An exception with an `exit_code` is a user's
    error; any other exception is reported as an internal error.
    """
    try:
        _run(app, stage, sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        if arguments is not None:
            raise
        end_process(end.code)


def end_process(code: str | int | None) -> NoReturn:
    """Like sys.exit, but safe in a process group: gloo's threads may abort while the interpreter shuts down, so such a
    process flushes its output and exits at once."""
    torch = sys.modules.get("torch")
    joined = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    if not joined or isinstance(code, str):
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _run(app: typer.Typer, stage: str, arguments: list[str]) -> None:
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        if COMPLETE in os.environ:
            completion_init()
        app(
            args=arguments,
            prog_name=program(stage),
            standalone_mode=True,
            complete_var=COMPLETE,
            help_option_names=HELP_OPTIONS,
        )
    except KeyboardInterrupt:
        _exit(stage, "interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        _exit_without_reader()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Click has made exit code 1 of it
            _exit_without_reader()
        raise
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            _exit(stage, f"this needs the package {package}, which is not installed: pip install {package}", 2)
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            place = f"{error.filename}: " if error.filename else ""
            _exit(stage, f"{place}{error.strerror}. Free some disk space and run the same command again", 4)
        code = getattr(error, "exit_code", None)
        if isinstance(code, int):
            _exit(stage, str(error), code)
        _exit(stage, f"internal error: {type(error).__name__}: {error}\nRun again with --debug for the traceback.", 1)


def _exit_without_reader() -> NoReturn:
    """End as SIGPIPE would: the reader of our output has gone (| head). Discards what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(128 + signal.SIGPIPE)


def _exit(stage: str, message: str, code: int) -> None:
    print(f"{stage}: {local_commands(message)}", file=sys.stderr)
    sys.exit(code)


def parse_duration(text: str) -> float:
    """Seconds in '30s', '10m', '4h', '2d' or '90'. Raises ConfigError."""
    units: dict[str, float] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    unit = units.get(text[-1:].lower())
    number = text[:-1] if unit else text
    try:
        seconds = float(number) * (unit or 1)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"invalid duration '{text}': use 30s, 10m or 4h")
    return seconds
