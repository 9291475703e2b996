"""Choose the size of a run by the scaling law that an earlier ladder fitted to the same corpus.

runs/NAME-ladder/law.json: the fit, and the model, corpus, vocabulary and context length that it holds for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, FiniteFloat, PositiveInt

from mini_llm.corpus.fingerprint import corpus_fingerprint
from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.state import read_state

from ..config import PretrainConfig
from .law import MOST_EPOCHS, Backtest, Fit, Law

FILE = "law.json"
RUNS = Path("runs")
# As the rule of pretrain/plan/sizes.py chooses them.
WIDTHS = (64, 96, 128, 160, *range(192, 2049, 64))
# The law is not trusted for models of more times the parameters of the largest run of the ladder.
FARTHEST = 10


class Record(BaseModel):
    """law.json. parameters: of the largest run; the other fields but the fit: what the law holds for."""

    model: str
    corpus: str
    vocab_size: PositiveInt
    length: PositiveInt
    parameters: PositiveInt
    law: Law
    resampled: list[Law]
    residuals: list[FiniteFloat]
    backtest: Backtest | None = None

    @property
    def fit(self) -> Fit:
        return Fit(self.law, self.resampled, np.array(self.residuals), self.backtest)


@dataclass(frozen=True)
class Choice:
    """The best width by the law of `ladder`, and its predicted loss (nats per token) with a 95 % interval."""

    width: int
    loss: float
    low: float
    high: float
    ladder: str
    length: int

    @property
    def reason(self) -> str:
        return f"the lowest loss for the budget by the law of {self.ladder}"

    @property
    def row(self) -> tuple[str, str, str]:
        """The row of the plan's table for the predicted loss."""
        value = f"{self.loss:.3f} ({self.low:.3f} to {self.high:.3f})"
        return "predicted loss", value, f"{self.ladder}: random embeddings, {self.length:,} tokens of context"


def write_law(folder: Path, fit: Fit, model: str, corpus: str, vocab_size: int, length: int, parameters: int) -> None:
    """Write law.json into the folder of a ladder."""
    record = Record(
        model=model,
        corpus=corpus,
        vocab_size=vocab_size,
        length=length,
        parameters=parameters,
        law=fit.law,
        resampled=fit.resampled,
        residuals=fit.residuals.tolist(),
        backtest=fit.backtest,
    )
    write_json(folder / FILE, record.model_dump())


def width_by_ladder(
    config: PretrainConfig, vocab_size: int, corpus_tokens: int, candidate: Callable[[int], tuple[float, float]]
) -> Choice | None:
    """The width with the lowest loss for the budget, by the newest ladder with this model, corpus and vocabulary.

    candidate(width): parameters (all of them, embeddings included, tied ones once), and the tokens that fit into the
    budget. corpus_tokens: size of the training text. Returns None where there is no ladder, or its law does not reach
    the smallest width.
    """
    found = _newest_law(config, vocab_size)
    if found is None:
        return None
    name, record = found
    unrepeated = min(MOST_EPOCHS, config.max_epochs) * corpus_tokens
    candidates = {}
    for width in WIDTHS:
        parameters, tokens = candidate(width)
        if parameters > FARTHEST * record.parameters:
            break
        candidates[width] = parameters, min(tokens, unrepeated)
    if not candidates:
        return None
    best = min(candidates, key=lambda width: float(record.law.loss(*candidates[width])))
    return Choice(best, *record.fit.predict(*candidates[best]), name, record.length)


def _newest_law(config: PretrainConfig, vocab_size: int) -> tuple[str, Record] | None:
    """The folder and the law of the newest ladder that suits this run."""
    paths = sorted(RUNS.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    records = [(str(path.parent), record) for path in paths if (record := read_state(path, Record)) is not None]
    suitable = [found for found in records if (found[1].model, found[1].vocab_size) == (config.model, vocab_size)]
    if not suitable:
        return None
    corpus = corpus_fingerprint(config.corpus)
    return next((found for found in suitable if found[1].corpus == corpus), None)
