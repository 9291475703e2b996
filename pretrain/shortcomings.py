"""What the user must know about a model that learned nothing: it is worse than at its start or than no model at all."""

from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.jsonl import read_rows

from .data import Data


def shortcomings(run: RunDirectory, loss: float, data: Data) -> list[str]:
    """A line for each reason why the model of a finished run is useless; `loss`: of its held-out data, in nats."""
    losses = [row["train/loss"] for row in read_rows(run.path / "metrics.jsonl") if row.get("train/loss") is not None]
    unigram = data.stores["train"].unigram_entropy() if data.stores is not None else None
    found = []
    if unigram is not None and loss > unigram:
        found.append(
            f"This model is worse than the frequencies of the tokens: its loss is {loss:.3f} nats per token, the "
            f"unigram entropy is {unigram:.3f}. {len(losses):,} steps were too few: give it a larger budget"
        )
    # Held-out text alone may have a larger loss than the first training texts.
    if losses and min(loss, losses[-1]) > losses[0]:
        found.append(
            f"This model is worse than at its start: its loss is {loss:.3f} nats per token, that of step 1 was "
            f"{losses[0]:.3f}. Give it a larger budget, or lower optim.lr and optim.muon_lr"
        )
    return found
