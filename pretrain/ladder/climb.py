"""Train a ladder of small runs, fit the scaling law, predict the loss of the next size, and train that size.

runs/NAME-ladder/           config.yaml, rungs.json (the chosen runs), ladder.json (results), law.json (the fit, for the
                            plans of later runs), ladder.html, ladder.svg
runs/NAME-ladder/RUNG/      one run per size and token count
runs/NAME-ladder/TOKENIZER/ the tokenizer of all runs, unless one is given
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from pydantic import BaseModel, PositiveInt
from rich.console import Console

from mini_llm.engine.device import default_device
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.distributed.processes import start_processes
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.deadline import Deadline
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.inputs import own_name
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.run.state import read_state
from mini_llm.engine.settings import HARMLESS

from ..config import PretrainConfig
from ..data import Data, prepare_data
from ..plan.sizes import Plan, make_plan
from ..run import RUNS, pretrain
from .fit import fit_law
from .law import Fit
from .page import Climb, print_climb, write_climb
from .rungs import FITTED_SHARE, LENGTH, Rung, Size, choose_widths, fitted_rungs, held_out_rung, measure_size
from .use import write_law

SAVES = 5
# A run evaluates at its end only.
NEVER = 10**9
# A run gets at least this share of the time that was planned for it, however late the ladder is.
LEAST_SHARE = 0.3


class Rungs(BaseModel):
    """rungs.json: what the first launch has measured and chosen. held_out: chosen when the fitted runs are finished.

    seconds_used: wall time of all launches. held_back: seconds of the budget that are not for the fitted runs.
    In ladders of earlier releases the fields from held_back on are missing, and a run has no share of the time.
    """

    tokenizer: str
    seconds_used: float
    fitted: list[Rung]
    last: Size
    held_out: Rung | None = None
    held_back: float | None = None
    global_batch_size: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    corpus_fingerprint: str | None = None


def climb(config: PretrainConfig, widths: str | None, runs: Path = RUNS) -> Climb:
    """Run or resume the ladder of `config` and write its page. Raises the errors of mini_llm.engine.errors."""
    seconds = check(config)
    deadline = Deadline(seconds)
    processes = start_processes(config.runtime)
    main = processes.is_main_process
    console = Console(stderr=True, quiet=not main, soft_wrap=True)
    config = with_fixed_choices(config)
    name = config.run or own_name(config.run_name, config.data_paths, runs, "-ladder")
    name = f"{name}-ladder"
    tree = {"widths": widths, **config.model_dump(mode="json")}
    with RunDirectory(runs / name, main_process=main) as directory:
        # Before the runs are chosen nothing was trained, and another budget or other sizes may be given.
        if (directory.path / "rungs.json").exists():
            for note in directory.compare_config(tree, HARMLESS):
                console.print(note, markup=False)
        directory.record(tree, "ladder")
        rungs = broadcast(read_state(directory.path / "rungs.json", Rungs, aside=main) if main else None, processes)
        if rungs is None:
            rungs = choose(config, widths, directory.path, deadline, processes, console)
        else:
            deadline = Deadline(seconds - rungs.seconds_used)
        ladder = Ladder(config, name, directory.path, rungs, seconds, deadline, processes, console)
        ladder.save()
        done = [ladder.train_fitted(index) for index in range(len(rungs.fitted))]
        fitted, losses = [rung for rung, _ in done], [loss for _, loss in done]
        fit = fit_rungs(fitted, losses)
        if rungs.held_out is None:
            rungs.held_out = broadcast(held_out_rung(rungs.last, deadline.left, fitted), processes)
            ladder.save()
        found = Climb(name, fitted, losses, fit, rungs.held_out)
        console.print(found.prediction_in_words(), markup=False)
        if main:
            # Written before the held-out run, so that the prediction is on record.
            write_climb(found, directory.path)
            ladder.write_law(found)
        found.held_out, found.measured = ladder.train(rungs.held_out)
        if main:
            write_climb(found, directory.path)
            print_climb(found, directory.path)
            directory.finish({"val/loss": found.measured})
    return found


def check(config: PretrainConfig) -> float:
    """Return the budget in seconds. Raises ConfigError for settings that a ladder cannot use."""
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
    return config.budget_seconds


def with_fixed_choices(config: PretrainConfig) -> PretrainConfig:
    """`config` with one context length for all sizes, and random embeddings unless others are asked for.

    The fit to bigrams reads the whole corpus before the first step, so that the loss would hardly depend on D.
    """
    sizes = config.sizes.model_copy(update={"max_position_embeddings": config.sizes.max_position_embeddings or LENGTH})
    start = config.init_embeddings if "init_embeddings" in config.model_fields_set else "random"
    return config.model_copy(update={"sizes": sizes, "init_embeddings": start})


def choose(
    config: PretrainConfig,
    given: str | None,
    folder: Path,
    deadline: Deadline,
    processes: PartialState,
    console: Console,
) -> Rungs:
    """Train the tokenizer, measure the speed of each size, and choose the runs to fit. Raises ConfigError."""
    ranks, device, seconds = processes.num_processes, default_device(config.runtime.device), deadline.left
    widths = broadcast(choose_widths(given, config, seconds, ranks, device), processes)
    largest = sized(config, widths[-1])
    with processes.main_process_first():
        data = prepare_data(largest.model_copy(update={"run": None, "budget": None}), processes, folder)
    tokens, validation = len(data.stores["train"]), len(data.stores["validation"])
    sizes, batch = [], None
    for width in widths:
        console.print(f"measuring width {width}")
        one = sized(config, width)
        plan = plan_of(one, data, ranks)
        batch = plan.global_batch_size
        sizes.append(measure_size(one, plan, validation, ranks, device))
    left = deadline.left
    rungs = Rungs(
        tokenizer=str(data.tokenizer.directory),
        seconds_used=seconds - left,
        fitted=fitted_rungs(sizes[:-1], left, tokens, config.max_epochs, seconds - left),
        last=sizes[-1],
        held_back=(1 - FITTED_SHARE) * left,
        global_batch_size=batch,
        vocab_size=data.tokenizer.vocab_size,
        corpus_fingerprint=data.stores["train"].fingerprint,
    )
    return broadcast(rungs, processes)


def sized(config: PretrainConfig, width: int) -> PretrainConfig:
    """`config` of one width, without a budget."""
    sizes = config.sizes.model_copy(update={"hidden_size": width})
    return config.model_copy(update={"sizes": sizes, "budget": None})


def plan_of(config: PretrainConfig, data: Data, ranks: int) -> Plan:
    device = default_device(config.runtime.device)
    return make_plan(config, None, data.tokenizer, len(data.stores["train"]), None, ranks, device)


@dataclass
class Ladder:
    """A ladder whose runs are chosen; `config` has no width and no steps yet, `deadline` is the end of the budget."""

    config: PretrainConfig
    name: str
    folder: Path
    rungs: Rungs
    seconds: float
    deadline: Deadline
    processes: PartialState
    console: Console

    def save(self) -> None:
        """Write rungs.json."""
        if self.processes.is_main_process:
            self.rungs.seconds_used = self.seconds - self.deadline.left
            write_json(self.folder / "rungs.json", self.rungs.model_dump())

    def train_fitted(self, index: int) -> tuple[Rung, float]:
        """Train one of the runs to fit, as `train` does, in its share of the time that is left for it and later ones.

        A run that has begun keeps its seconds.
        """
        rung, back = self.rungs.fitted[index], self.rungs.held_back
        if rung.seconds is not None and back is not None and not (self.folder / rung.name).exists():
            planned = sum(other.seconds or 0.0 for other in self.rungs.fitted[index:])
            rung.seconds *= max(LEAST_SHARE, (self.deadline.left - back) / planned)
        rung.seconds = broadcast(rung.seconds, self.processes)
        self.save()
        return self.train(rung)

    def train(self, rung: Rung) -> tuple[Rung, float]:
        """A run as it was done, and its validation loss: trained now, resumed, or read where it is finished."""
        self.console.print(f"{rung.name}: {rung.parameters:,} parameters, {rung.tokens:,} tokens", markup=False)
        config = sized(self.config, rung.width)
        update: dict[str, Any] = {
            "run": rung.name,
            "tokenizer": self.rungs.tokenizer,
            "vocab_size": None,
            "max_steps": rung.steps,
            "evaluate_every": config.evaluate_every or NEVER,
            "save_every": config.save_every or max(1, rung.steps // SAVES),
            "tracking": config.tracking.model_copy(update={"group": config.tracking.group or self.name}),
        }
        if rung.seconds is not None:
            # A budget would also choose a batch.
            batch = config.global_batch_size or self.rungs.global_batch_size
            update |= {"budget": f"{rung.seconds:.1f}s", "global_batch_size": batch}
        loss = pretrain(config.model_copy(update=update), self.folder)["val/loss"]
        rows = read_rows(self.folder / rung.name / "metrics.jsonl")
        steps = max((row.get("step", 0) for row in rows), default=rung.steps)
        return broadcast(rung.after(steps), self.processes), loss

    def write_law(self, found: Climb) -> None:
        """Write law.json, from which later runs on this corpus choose their size."""
        rungs = self.rungs
        if rungs.corpus_fingerprint is None or rungs.vocab_size is None:
            return
        write_law(
            self.folder,
            found.fit,
            model=self.config.model,
            corpus=rungs.corpus_fingerprint,
            vocab_size=rungs.vocab_size,
            length=self.config.sizes.max_position_embeddings or LENGTH,
            parameters=max(rung.parameters for rung in found.rungs),
        )


def fit_rungs(rungs: Sequence[Rung], losses: Sequence[float]) -> Fit:
    return fit_law([rung.parameters for rung in rungs], [rung.tokens for rung in rungs], losses)
