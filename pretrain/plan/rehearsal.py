"""A rehearsal: a few training steps before the plan of a run is fixed, to choose by measured speed.

The width follows from the speed of steps of one or two widths; micro-batches, threads, the positions whose logits are
computed at a time, and compilation follow from comparisons of steps. These choices change the last bits of the result.
A run therefore stores them (choices.json), and a run with a given number of steps measures nothing.
"""

import gc
import time
from collections.abc import Callable
from statistics import median

import torch

from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.run.deadline import Deadline

from ..config import PretrainConfig
from .comparison import Comparison
from .draft import memory_setup
from .fit import check_memory
from .sizes import MakePlan, Plan
from .speed import Speed
from .trial_steps import Trial

# Share of the expected duration of a run that its rehearsal may take. Where that is less than LEAST_SECONDS, as long as
# a first step takes, nothing is measured.
SHARE, LEAST_SECONDS, MOST_SECONDS = 0.02, 0.5, 60.0
# Steps that are timed of one width; widths.
STEPS, MOST_WIDTHS = 3, 2
# Steps for which a rehearsal has time; steps of one micro-batch for which it needs time.
TIMED, FEWEST = 60, 4


def rehearse(
    config: PretrainConfig, make: MakePlan, ranks: int, device: torch.device, say: Callable[[str], None]
) -> tuple[Plan, float]:
    """The plan of a run by the measured speed of its steps, where measuring pays, and the seconds that this took.

    say: shows a line about each phase. Call start_processes first.
    """
    plan = make(None)
    allowed = min(MOST_SECONDS, SHARE * plan.seconds)
    # Several ranks would have to agree on each step, and DeepSpeed prepares only one model.
    alone = ranks == 1 and zero_stage(config.runtime) is None
    if config.budget is None or config.max_steps is not None or not alone or allowed < LEAST_SECONDS:
        return plan, 0.0
    if FEWEST * _expected_seconds(plan) > allowed or not _fits(config, plan, device):
        return plan, 0.0
    start, deadline = time.monotonic(), Deadline(allowed)
    plan, trial = _choose_sizes(config, plan, make, device, deadline, say)
    if not deadline.passed:
        trial = _suited(trial, config, plan, device)
        say("rehearsal: comparing micro-batches, threads and compilation")
        rows = _rows_to_time(plan, trial, deadline)
        Comparison(config, plan, trial, rows, device, deadline, say).choose()
    del trial
    # Autocast's wrapper makes a model part of a reference cycle.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    seconds = time.monotonic() - start
    say(f"rehearsal: {seconds:.1f} s")
    return plan, seconds


def _expected_seconds(plan: Plan) -> float:
    """Seconds of a step of one micro-batch at the assumed speed."""
    per_token = flops_per_token(plan.config, plan.row.length, plan.row.label_share)
    return plan.micro_batch_size * plan.row.tokens * per_token / plan.flops_per_second


def _fits(config: PretrainConfig, plan: Plan, device: torch.device) -> bool:
    try:
        check_memory(plan.config, memory_setup(config, plan, 1, 0, device))
    except ConfigError:
        return False
    return True


def _choose_sizes(
    config: PretrainConfig,
    plan: Plan,
    make: MakePlan,
    device: torch.device,
    deadline: Deadline,
    say: Callable[[str], None],
) -> tuple[Plan, Trial | None]:
    """The plan for the speed of the width that it chooses, measured there or at a width near it; the last model."""
    speed, measured, trial = Speed([]), set(), None
    while plan.config.hidden_size not in measured and len(measured) < MOST_WIDTHS and not deadline.passed:
        width, layers = plan.config.hidden_size, plan.config.num_hidden_layers
        say(f"rehearsal: measuring steps of width {width}, {layers} layers")
        trial = _suited(trial, config, plan, device)
        rows = _rows_to_time(plan, trial, deadline)
        speed = speed.with_point(width, _flops_per_second(plan, trial, rows, deadline))
        measured.add(width)
        plan = make(speed)
    return plan, trial


def _suited(trial: Trial | None, config: PretrainConfig, plan: Plan, device: torch.device) -> Trial:
    """`trial` if it has the planned model, else a new one."""
    if trial is not None and trial.model == plan.config:
        return trial
    return Trial(config, plan.config, memory_setup(config, plan, 1, 0, device))


def _rows_to_time(plan: Plan, trial: Trial, deadline: Deadline) -> int:
    """Rows of a step of which TIMED fit into the time left: of one micro-batch at least, of the planned step at most.

    The more there are, the closer is the optimizer's share to that of the planned step.
    """
    least, most = plan.micro_batch_size, plan.global_batch_size
    # The first step of a model is slower.
    trial.seconds_per_row(plan.way, least)
    seconds = trial.seconds_per_row(plan.way, least) * least
    return least * max(1, min(most // least, int(deadline.left / (TIMED * seconds))))


def _flops_per_second(plan: Plan, trial: Trial, rows: int, deadline: Deadline) -> float:
    taken = [trial.seconds_per_row(plan.way, rows)]
    while len(taken) < STEPS and not deadline.passed:
        taken.append(trial.seconds_per_row(plan.way, rows))
    return plan.row.tokens * flops_per_token(plan.config, plan.row.length, plan.row.label_share) / median(taken)
