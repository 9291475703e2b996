"""The runs of a ladder: which sizes and token counts fit into its budget."""

import re
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, PositiveFloat, PositiveInt

from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.errors import ConfigError

from ..config import PretrainConfig
from ..plan.draft import memory_setup
from ..plan.parameters import count_parameters
from ..plan.sizes import Plan, expected_width
from ..plan.trial_steps import run_trial_steps
from .fit import FEWEST_VALUES
from .law import MOST_EPOCHS

# The last of the chosen widths is held out. All have heads of a size that the kernels support.
WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
FITTED_SIZES = 4
# Token counts of each size, as shares of its largest.
SHARES = (0.16, 0.4, 1.0)
# Share of the budget, without the time to measure speeds, for the runs that are fitted; the rest is for the held-out
# run. And the share for which the largest width is chosen.
FITTED_SHARE, HELD_OUT_SHARE = 2 / 3, 0.3
# Runs of fewer steps end near the unigram entropy, where the law does not hold yet.
FEWEST_STEPS = 100
LENGTH = 128
TRIAL_STEPS, TRIAL_SECONDS = 5, 5.0
# Time of a run besides steps and evaluation, and the cost of a token in evaluation relative to training.
OVERHEAD_SECONDS, FORWARD_COST = 2.0, 0.4


class Rung(BaseModel):
    """One run of the ladder. parameters: all of them, embeddings included, tied ones once.

    steps: at most, or those that the run did. seconds: its share of the budget, in which a machine that has become
    slower does fewer steps; None: no limit. name: of its directory, by the planned steps.
    """

    width: PositiveInt
    parameters: PositiveInt
    steps: PositiveInt
    tokens: PositiveInt
    seconds: PositiveFloat | None = None
    name: str = ""

    def model_post_init(self, _: Any) -> None:
        self.name = self.name or f"width-{self.width}-steps-{self.steps}"

    def after(self, steps: int) -> "Rung":
        """This run, which ended after `steps`."""
        return self.model_copy(update={"steps": steps, "tokens": self.tokens // self.steps * steps})


class Size(BaseModel):
    """A model size, with the measured seconds of a training step and the estimated ones of an evaluation."""

    width: PositiveInt
    parameters: PositiveInt
    tokens_per_step: PositiveInt
    step_seconds: PositiveFloat
    evaluation_seconds: PositiveFloat

    def rung(self, steps: int, seconds: float | None = None) -> Rung:
        """A run of `steps`, in `seconds` or the time that they take at the measured speed."""
        return Rung(
            width=self.width,
            parameters=self.parameters,
            steps=steps,
            tokens=steps * self.tokens_per_step,
            seconds=seconds or self.seconds(steps),
        )

    def seconds(self, steps: float) -> float:
        """The time of a run of `steps` at the measured speed."""
        return steps * self.step_seconds + self.evaluation_seconds + OVERHEAD_SECONDS


def choose_widths(
    given: str | None, config: PretrainConfig, seconds: float, ranks: int, device: torch.device
) -> list[int]:
    """The widths of the ladder in ascending order, the last one held out. Raises ConfigError for unusable `given`."""
    if given is not None:
        return parse_widths(given)
    free = config.sizes.model_copy(update={"hidden_size": None})
    wanted = config.model_copy(update={"budget": f"{HELD_OUT_SHARE * seconds:g}s", "sizes": free})
    largest = expected_width(wanted, ranks, device)
    last = max(FITTED_SIZES, sum(width <= largest for width in WIDTHS) - 1)
    return list(WIDTHS[last - FITTED_SIZES : last + 1])


def parse_widths(text: str) -> list[int]:
    """Widths from "32,64,96,128". Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    widths = [int(part) for part in parts if re.fullmatch(r"\d{1,6}", part)]
    if len(widths) < len(parts) or sorted(set(widths)) != widths or min(widths) < 8:
        raise ConfigError(f"--widths {text}: write ascending numbers from 8 on, such as 32,48,64,96,128")
    if len(widths) < FEWEST_VALUES + 1:
        raise ConfigError(
            f"--widths {text}: {len(widths)} sizes; the fit needs {FEWEST_VALUES} or more, and the last one is held out"
        )
    return widths


def measure_size(config: PretrainConfig, plan: Plan, validation_tokens: int, ranks: int, device: torch.device) -> Size:
    """Measure the speed of a planned size with a few real steps."""
    setup = memory_setup(config, plan, ranks, zero_stage(config.runtime) or 0, device)
    taken = run_trial_steps(config, plan.config, setup, TRIAL_STEPS, TRIAL_SECONDS)
    seconds = median(taken[1:] or taken)
    tokens = plan.global_batch_size * plan.row.text
    return Size(
        width=plan.config.hidden_size,
        parameters=count_parameters(plan.config).total,
        tokens_per_step=tokens,
        step_seconds=seconds,
        evaluation_seconds=FORWARD_COST * seconds * validation_tokens / tokens,
    )


def fitted_rungs(
    sizes: Sequence[Size], seconds: float, corpus_tokens: int, max_epochs: float, used: float = 0.0
) -> list[Rung]:
    """The runs to fit, every size with an equal share of the time. Raises ConfigError when the budget is too short.

    seconds: what is left of the budget of the ladder, of which `used` seconds are gone.
    """

    def most_steps(size: Size, seconds: float) -> float:
        fixed = len(SHARES) * (size.evaluation_seconds + OVERHEAD_SECONDS)
        return (FITTED_SHARE * seconds / len(sizes) - fixed) / (sum(SHARES) * size.step_seconds)

    rungs = []
    for size in sizes:
        steps = min(most_steps(size, seconds), epoch_steps(size, corpus_tokens, max_epochs))
        if SHARES[0] * steps < FEWEST_STEPS:
            raise ConfigError(_too_short(size, sizes, corpus_tokens, max_epochs, most_steps, used))
        rungs += [size.rung(round(share * steps)) for share in SHARES]
    return rungs


def _too_short(
    size: Size,
    sizes: Sequence[Size],
    corpus_tokens: int,
    max_epochs: float,
    most_steps: Callable[[Size, float], float],
    used: float,
) -> str:
    needed = FEWEST_STEPS / SHARES[0]
    if epoch_steps(size, corpus_tokens, max_epochs) < needed:
        return (
            f"the training text has {corpus_tokens:,} tokens, too few for a ladder: {needed:.0f} steps of "
            f"{size.tokens_per_step:,} tokens would read it more than {min(MOST_EPOCHS, max_epochs):g} times. "
            "Give more text, or a smaller global_batch_size"
        )
    enough = next(
        seconds
        for seconds in (60.0 * 2**i for i in range(40))
        if min(most_steps(s, seconds - used) for s in sizes) >= needed
    )
    return (
        f"the budget is too short: width {size.width} would train for fewer than {needed:.0f} steps. "
        f"--budget {enough / 60:g}m is enough, or give smaller --widths"
    )


def epoch_steps(size: Size, corpus_tokens: int, max_epochs: float) -> float:
    """The steps that read the corpus as often as the law allows."""
    return min(MOST_EPOCHS, max_epochs) * corpus_tokens / size.tokens_per_step


def held_out_rung(size: Size, left: float, fitted: Sequence[Rung]) -> Rung:
    """The run to predict, in the `left` seconds of the budget: a larger size, but no more tokens than the fitted runs.

    At the least it has the steps of the shortest fitted run, and the time for them.
    """
    fitting = (left - size.seconds(0)) / size.step_seconds
    most = max(rung.tokens for rung in fitted) / size.tokens_per_step
    steps = max(min(rung.steps for rung in fitted), round(min(fitting, most)))
    return size.rung(steps, max(left, size.seconds(min(rung.steps for rung in fitted))))
