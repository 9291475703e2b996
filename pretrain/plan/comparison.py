"""Compare ways to compute the training steps of a planned model by their measured speed."""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import TypeVar

import torch

from mini_llm.engine.device import DTYPES, resolve_precision
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.flops import flops_per_token, matmul_ceiling
from mini_llm.engine.kernels.attention import in_one_operator
from mini_llm.engine.loss import chunk_rows
from mini_llm.engine.run.deadline import Deadline

from ..config import PretrainConfig
from .compiling import (
    MARGIN,
    Compiled,
    compile_key,
    cost_in_seconds,
    crowding,
    expected_gain,
    obstacle,
    read_compiled,
    write_compiled,
)
from .fit import check_memory
from .sizes import Plan
from .trial_steps import Trial, Way

# Steps of each way; one that is HOPELESS times slower loses at once.
ROUNDS, HOPELESS = 3, 1.3
# A smaller gain is noise. One thread has to gain more: other work on the machine may soon end.
GAIN, GAIN_OF_ONE_THREAD = 1.03, 1.25
# Positions whose logits are computed at a time, at least.
FEWEST_LOGIT_ROWS = 128


T = TypeVar("T", int, str)


class Comparison:
    """Changes `plan` to the fastest way of those that it measures before the deadline.

    rows: of a step that is timed. say: shows a line before a long phase.
    """

    def __init__(
        self,
        config: PretrainConfig,
        plan: Plan,
        trial: Trial,
        rows: int,
        device: torch.device,
        deadline: Deadline,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.plan, self.trial, self.rows, self.device = config, plan, trial, rows, device
        self.deadline, self.say = deadline, say
        self.seconds_per_row = trial.seconds_per_row(plan.way, rows)

    def choose(self) -> None:
        """Compare one choice after the other, and write what was found into the plan."""
        plan, runtime = self.plan, self.config.runtime
        if runtime.attention == "auto" and self.trial.setup.kernels and in_one_operator(plan.config):
            in_kernel = plan.row.length <= self.trial.setup.longest_in_kernel
            self._climb("attention", "kernel" if in_kernel else "pytorch", [_other_attention], GAIN)
        if self.config.micro_batch_size is None:
            self._climb("micro_batch_size", plan.micro_batch_size, [self._more_rows, self._fewer_rows], GAIN)
        if self.device.type == "cpu" and runtime.threads is None:
            self._climb("threads", torch.get_num_threads(), [_one_thread], GAIN_OF_ONE_THREAD)
        if runtime.logit_rows is None:
            positions = self.trial.setup.labels * plan.micro_batch_size
            usual = min(positions, chunk_rows(plan.config, self.device))

            def more(rows: int) -> int | None:
                return min(2 * rows, positions) if rows < positions else None

            self._climb("logit_rows", usual, [more, _fewer_logit_rows], GAIN)
        if runtime.compile == "auto" and obstacle(self.config, self.device) is None:
            self._choose_compile()

    def _climb(self, name: str, usual: T, steps: list[Callable[[T], T | None]], gain: float) -> None:
        """Follow each of `steps` from the `usual` value of the choice `name` as long as speed grows by `gain`."""
        found: dict[T, float] = {}
        value = usual
        for step in steps:
            while (other := step(value)) is not None and other not in found:
                changed = replace(self.plan.way, **{name: other})
                if not self._has_time(changed):
                    break
                found[value], found[other] = self._compare(self.trial, self.plan.way, changed)
                if found[value] < gain * found[other]:
                    break
                value = other
                self.plan.take(changed)
                self.seconds_per_row = found[other]
            if value != usual:
                break
        if found:
            speeds = [f"{self._tokens_per_second(found[other]):,.0f} with {_text(other)}" for other in sorted(found)]
            self.plan.reasons.replace(name, _text(value), f"tokens/s: {', '.join(speeds)}")
            # Also where it is the usual one, which another launch could count otherwise.
            self.plan.take(replace(self.plan.way, **{name: value}))

    def _more_rows(self, rows: int) -> int | None:
        """The smallest divisor of the batch that is at least twice `rows`, if it fits into memory."""
        batch = self.plan.global_batch_size
        larger = next((size for size in range(2 * rows, batch + 1) if batch % size == 0), None)
        if larger is not None:
            try:
                check_memory(self.plan.config, replace(self.trial.setup, rows=larger, accumulation=batch // larger))
            except ConfigError:
                return None
        return larger

    def _fewer_rows(self, rows: int) -> int | None:
        """The largest divisor of the batch that is at most half of `rows`."""
        batch = self.plan.global_batch_size
        return next((size for size in range(rows // 2, 0, -1) if batch % size == 0), None)

    def _choose_compile(self) -> None:
        """Compile where earlier runs or the expected gain let it pay, and keep it where its steps are faster."""
        plan, way = self.plan, self.plan.way
        setup = replace(self.trial.setup, rows=way.micro_batch_size, logit_rows=way.logit_rows)
        key, known = compile_key(plan.config, setup, way.threads or torch.get_num_threads()), read_compiled()
        cost = cost_in_seconds(known, key, self.device)
        if key in known:
            gain, source, margin = known[key].gain, "measured in an earlier run", 1.0
        else:
            gain, source, margin = expected_gain(self._mfu()), "expected", MARGIN
        if gain < GAIN or plan.seconds * (1 - 1 / gain) < margin * cost:
            why = f"steps {gain:.2f} times as fast ({source}) do not pay for {cost:.0f} s of compiling"
            plan.reasons.replace("compile", "no", why)
            return
        self.say(f"rehearsal: compiling the layers, about {cost:.0f} s")
        start = time.monotonic()
        changed = replace(way, compile=True)
        try:
            runtime = self.config.runtime.model_copy(update={"compile": True})
            compiled = Trial(self.config.model_copy(update={"runtime": runtime}), plan.config, setup)
            compiled.seconds_per_row(changed, self.rows)
        except RuntimeError as error:
            plan.reasons.replace("compile", "no", f"it fails here: {str(error).strip().splitlines()[0][:100]}")
            return
        seconds = time.monotonic() - start
        usual, other = self._compare(compiled, way, changed)
        write_compiled(key, Compiled(seconds=seconds / crowding(), gain=usual / other))
        speeds = f"{self._tokens_per_second(other):,.0f} tokens/s compiled, {self._tokens_per_second(usual):,.0f} not"
        if usual >= GAIN * other:
            plan.take(changed)
        plan.reasons.replace("compile", "yes" if plan.compile else "no", f"{speeds}; measured after {seconds:.0f} s")

    def _compare(self, trial: Trial, usual: Way, changed: Way) -> tuple[float, float]:
        """Seconds per row of the usual way and of the changed one in `trial`, in turns."""
        rows = self._rows_of_both(changed)
        # The first step is slower.
        trial.seconds_per_row(changed, changed.micro_batch_size)
        before: list[float] = []
        after: list[float] = []
        while len(after) < ROUNDS and (not after or min(after) < HOPELESS * max(before)):
            before.append(self.trial.seconds_per_row(usual, rows))
            after.append(trial.seconds_per_row(changed, rows))
        return median(before), median(after)

    def _has_time(self, changed: Way) -> bool:
        """Whether a comparison with `changed` ends before the deadline."""
        return self.deadline.left > (1 + 2 * ROUNDS) * self.seconds_per_row * self._rows_of_both(changed)

    def _rows_of_both(self, changed: Way) -> int:
        """Rows of the steps in a comparison: with equal ones the optimizer has an equal share."""
        return max(self.rows, changed.micro_batch_size)

    def _mfu(self) -> float:
        """MFU of the fastest way."""
        per_token = flops_per_token(self.plan.config, self.plan.row.length, self.plan.row.label_share)
        dtype = DTYPES[resolve_precision(self.config.runtime.precision, self.device)]
        return self._tokens_per_second(self.seconds_per_row) * per_token / matmul_ceiling(self.device, dtype)

    def _tokens_per_second(self, seconds_per_row: float) -> float:
        return self.plan.row.tokens / seconds_per_row


def _fewer_logit_rows(rows: int) -> int | None:
    return rows // 2 if rows >= 2 * FEWEST_LOGIT_ROWS else None


def _other_attention(name: str) -> str | None:
    return "pytorch" if name == "kernel" else "kernel"


def _text(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _one_thread(threads: int) -> int | None:
    return 1 if threads > 1 else None
