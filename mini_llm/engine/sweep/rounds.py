"""How the budget of a sweep is divided among its trials."""

from dataclasses import dataclass

from mini_llm.engine.errors import ConfigError

# The rest is for starting programs, reading data and saving models.
TRAINING_SHARE = 0.85
# A trial with less time is over before the learning rate has fallen.
LEAST_SECONDS = 5.0


@dataclass(frozen=True)
class Round:
    """The best `trials` of the round before have `seconds` of training each, from the beginning."""

    number: int
    trials: int
    seconds: float


def plan_rounds(trials: int, seconds: float, eta: float | None) -> list[Round]:
    """The rounds of a sweep of `trials` in `seconds`.

    eta: None gives all trials the same time. Otherwise successive halving (Jamieson and Talwalkar 2016): every round
    has the same time in all and keeps one of `eta` trials. Raises ConfigError when a trial would have too little time.
    """
    counts = [trials]
    while eta is not None and counts[-1] > 1:
        counts.append(max(1, min(counts[-1] - 1, int(counts[-1] / eta))))
    share = TRAINING_SHARE * seconds / len(counts)
    rounds = [Round(number, count, round(share / count, 1)) for number, count in enumerate(counts, 1)]
    if rounds[0].seconds < LEAST_SECONDS:
        needed = LEAST_SECONDS * trials * len(counts) / TRAINING_SHARE
        raise ConfigError(
            f"the budget is too short: {trials} trials would have {rounds[0].seconds:g} s each, and need "
            f"{LEAST_SECONDS:g}. --budget {needed / 60 + 0.1:.1f}m is enough, or give fewer --trials"
        )
    return rounds
