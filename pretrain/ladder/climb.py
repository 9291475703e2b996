"""Train a ladder of small runs, fit the scaling law, predict the loss of the next size, and train that size.

runs/NAME-ladder/           config.yaml, rungs.json (the chosen runs), ladder.json (results), ladder.html, ladder.svg
runs/NAME-ladder/RUNG/      one run per size and token count
runs/NAME-ladder/TOKENIZER/ the tokenizer of all runs, unless one is given
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from pydantic import BaseModel
from rich.console import Console

from mini_llm.engine.device import default_device
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.processes import start_processes
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.state import Finished, read_state
from mini_llm.engine.settings import HARMLESS

from ..config import PretrainConfig
from ..data import Data, prepare_data
from ..plan.sizes import Plan, make_plan
from ..run import RUNS, pretrain
from .fit import Fit, fit_law
from .page import Climb, print_climb, write_climb
from .rungs import LENGTH, Rung, Size, choose_widths, fitted_rungs, held_out_rung, measure_size

SAVES = 5


class Rungs(BaseModel):
    """rungs.json: what the first launch has measured and chosen. held_out: chosen when the fitted runs are finished."""

    tokenizer: str
    seconds_used: float
    fitted: list[Rung]
    last: Size
    held_out: Rung | None = None


def climb(config: PretrainConfig, widths: str | None, runs: Path = RUNS) -> Climb:
    """Run or resume the ladder of `config` and write its page. Raises the errors of mini_llm.engine.errors."""
    check(config)
    processes = start_processes(config.runtime)
    main = processes.is_main_process
    console = Console(stderr=True, quiet=not main, soft_wrap=True)
    config = with_fixed_choices(config)
    name = f"{config.run_name}-ladder"
    tree = {"widths": widths, **config.model_dump(mode="json")}
    with RunDirectory(runs / name, main_process=main) as directory:
        # Before the runs are chosen nothing was trained, and another budget or other sizes may be given.
        if (directory.path / "rungs.json").exists():
            for note in directory.compare_config(tree, HARMLESS):
                console.print(note, markup=False)
        directory.record(tree, "ladder")
        stored = read_state(directory.path / "rungs.json", Rungs, aside=main) if main else None
        rungs = broadcast(stored, processes) or choose(config, widths, directory.path, processes, console)
        losses = [train_rung(config, rungs, rung, name, directory.path, console) for rung in rungs.fitted]
        fit = fit_rungs(rungs.fitted, losses)
        if rungs.held_out is None:
            rungs.held_out = choose_held_out(config, rungs, directory.path, processes)
            if main:
                write_json(directory.path / "rungs.json", rungs.model_dump())
        found = Climb(name, rungs.fitted, losses, fit, rungs.held_out)
        console.print(found.prediction_in_words(), markup=False)
        if main:
            # Written before the held-out run, so that the prediction is on record.
            write_climb(found, directory.path)
        found.measured = train_rung(config, rungs, rungs.held_out, name, directory.path, console)
        if main:
            write_climb(found, directory.path)
            print_climb(found, directory.path)
            directory.finish({"val/loss": found.measured})
    return found


def check(config: PretrainConfig) -> None:
    """Raise ConfigError for settings that a ladder cannot use."""
    refused = {
        "init": (config.init, "a ladder trains new models of several sizes"),
        "pairs": (config.pairs, "the law counts the tokens of a corpus"),
        "sizes.hidden_size": (config.sizes.hidden_size, "the ladder chooses widths; give them with --widths"),
        "max_steps": (config.max_steps, "the ladder chooses the steps of each run from --budget"),
    }
    for key, (value, why) in refused.items():
        if value is not None:
            raise ConfigError(f"{key} cannot be used here: {why}; leave it out")
    if config.budget_seconds is None:
        raise ConfigError("a ladder needs a time: --budget 30m")


def with_fixed_choices(config: PretrainConfig) -> PretrainConfig:
    """`config` with one context length for all sizes, and random embeddings unless others are asked for.

    The fit to bigrams reads the whole corpus before the first step, so that the loss would hardly depend on D.
    """
    sizes = config.sizes.model_copy(update={"max_position_embeddings": config.sizes.max_position_embeddings or LENGTH})
    start = config.init_embeddings if "init_embeddings" in config.model_fields_set else "random"
    return config.model_copy(update={"sizes": sizes, "init_embeddings": start})


def choose(config: PretrainConfig, given: str | None, folder: Path, processes: PartialState, console: Console) -> Rungs:
    """Train the tokenizer, measure the speed of each size, and choose the runs to fit. Raises ConfigError."""
    start = time.monotonic()
    ranks, device, seconds = processes.num_processes, default_device(config.runtime.device), config.budget_seconds
    widths = broadcast(choose_widths(given, config, seconds, ranks, device), processes)
    largest = sized(config, widths[-1])
    with processes.main_process_first():
        data = prepare_data(largest.model_copy(update={"run": None, "budget": None}), processes, folder)
    tokens, validation = len(data.stores["train"]), len(data.stores["validation"])
    sizes = []
    for width in widths:
        console.print(f"measuring width {width}")
        one = sized(config, width)
        sizes.append(measure_size(one, plan_of(one, data, ranks), validation, ranks, device))
    fitted = fitted_rungs(sizes[:-1], seconds, tokens, config.max_epochs)
    rungs = Rungs(
        tokenizer=str(data.tokenizer.directory),
        seconds_used=time.monotonic() - start,
        fitted=fitted,
        last=sizes[-1],
    )
    rungs = broadcast(rungs, processes)
    if processes.is_main_process:
        write_json(folder / "rungs.json", rungs.model_dump())
    return rungs


def sized(config: PretrainConfig, width: int) -> PretrainConfig:
    """`config` of one width, without a budget."""
    sizes = config.sizes.model_copy(update={"hidden_size": width})
    return config.model_copy(update={"sizes": sizes, "budget": None})


def plan_of(config: PretrainConfig, data: Data, ranks: int) -> Plan:
    device = default_device(config.runtime.device)
    return make_plan(config, None, data.tokenizer, len(data.stores["train"]), None, ranks, device)


def train_rung(config: PretrainConfig, rungs: Rungs, rung: Rung, name: str, folder: Path, console: Console) -> float:
    """The validation loss of a rung at its end: trained now, resumed, or read where it is finished."""
    console.print(f"{rung.name}: {rung.parameters:,} parameters, {rung.tokens:,} tokens", markup=False)
    tracking = config.tracking.model_copy(update={"group": config.tracking.group or name})
    config = sized(config, rung.width).model_copy(
        update={
            "run": rung.name,
            "tokenizer": rungs.tokenizer,
            "vocab_size": None,
            "max_steps": rung.steps,
            "evaluate_every": config.evaluate_every or rung.steps,
            "save_every": config.save_every or max(1, rung.steps // SAVES),
            "tracking": tracking,
        }
    )
    return pretrain(config, folder)["val/loss"]


def fit_rungs(rungs: Sequence[Rung], losses: Sequence[float]) -> Fit:
    return fit_law([rung.parameters for rung in rungs], [rung.tokens for rung in rungs], losses)


def choose_held_out(config: PretrainConfig, rungs: Rungs, folder: Path, processes: PartialState) -> Rung:
    """The held-out run that fits into what is left of the budget."""
    records = [read_state(folder / rung.name / "finished.json", Finished) for rung in rungs.fitted]
    used = rungs.seconds_used + sum(record.seconds or 0.0 for record in records if record)
    left: Any = config.budget_seconds - used
    rung = held_out_rung(rungs.last, left, rungs.fitted)
    return broadcast(rung, processes)
