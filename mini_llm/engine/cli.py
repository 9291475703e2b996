"""What every command line shares: the Typer application, exit codes, and errors without tracebacks."""

import errno
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.completion import completion_init
from typer.core import TyperGroup

from mini_llm.engine.errors import ConfigError

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Set by configs/completion.bash: the command line answers with completions.
COMPLETE = "MINI_LLM_COMPLETE"
EXIT_CODES = "Exit codes: 0 done, 2 usage or config, 3 data, 4 checkpoint or model, 5 non-finite loss, 130/143 signal."


class TrainByDefault(TyperGroup):
    """Arguments that name no command are those of `train`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names, *(o for p in self.params for o in p.opts)}
        return super().parse_args(ctx, args if args and args[0] in known else ["train", *args])


def command_app(help_text: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """A Typer application that shows help without markup surprises and never prints a Typer traceback."""
    # Typer would install its completion for a program called "python -m ..."; configs/completion.bash does it right.
    return typer.Typer(
        cls=cls, help=help_text, pretty_exceptions_enable=False, rich_markup_mode="rich", add_completion=False
    )


def add_replay(app: typer.Typer, module: str) -> None:
    """The command of a training stage that computes a step again, by `replay(path, step, dump)` of `module`."""

    @app.command()
    def replay(
        path: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Run directory.")],
        step: Annotated[int, typer.Argument(min=1, help="The step, as metrics.jsonl counts it.")],
        dump: Annotated[Path | None, typer.Option(help="safetensors file for the tensors of the batch.")] = None,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        """Compute a step of a run again, bit for bit; the same as python -m mini_llm replay."""
        import_module(module).replay(path, step, dump)


def run_app(app: typer.Typer, stage: str, arguments: list[str] | None = None) -> None:
    """Run `app` as `python -m <stage>`; turn user errors into one message and their exit code.

    Without `arguments`, those of this process, which then ends.

    An exception is the user's when it carries an `exit_code`; any other is a defect and is reported as one.
    """
    try:
        _run(app, stage, sys.argv[1:] if arguments is None else arguments)
    except SystemExit as end:
        if arguments is not None:
            raise
        end_process(end.code)


def end_process(code: str | int | None) -> NoReturn:
    """sys.exit, but for processes that have joined others: gloo's threads may abort an interpreter that tears itself
    down, when everything is done and written."""
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
        app(args=arguments, prog_name=f"python -m {stage}", standalone_mode=True, complete_var=COMPLETE)
    except KeyboardInterrupt:
        _exit(stage, "interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output went away (| head). What is still buffered has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.partition(".")[0]
            _exit(stage, f"the package {package} is needed for this and not installed: pip install {package}", 2)
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            place = f"{error.filename}: " if error.filename else ""
            _exit(stage, f"{place}{error.strerror}. Make room; the same command then goes on", 4)
        code = getattr(error, "exit_code", None)
        if isinstance(code, int):
            _exit(stage, str(error), code)
        _exit(stage, f"internal error: {type(error).__name__}: {error}\nRun again with --debug for the traceback.", 1)


def _exit(stage: str, message: str, code: int) -> None:
    print(f"{stage}: {message}", file=sys.stderr)
    sys.exit(code)


def parse_duration(text: str) -> float:
    """Seconds from '30s', '10m', '4h' or '90'. Raises ConfigError."""
    units: dict[str, float] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    unit = units.get(text[-1:].lower())
    number = text[:-1] if unit else text
    try:
        seconds = float(number) * (unit or 1)
    except ValueError:
        seconds = 0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"'{text}' is no time: write a time such as 30s, 10m or 4h")
    return seconds
