"""All texts of a run: the labelled splits, and unlabelled ones, by default those of the pretraining corpus."""

import numpy as np

from ..config import FinetuneConfig
from ..data import load_examples
from ..examples import Splits
from ..quality.overlap import pretraining_overlap, pretraining_sources
from ..quality.unlabelled import read_pretraining_texts
from ..teacher import Teacher

# Unlabelled text that is read, per second of the budget: LSA and the teacher's labels then take a sixth of it.
CHARACTERS_PER_SECOND, MOST_CHARACTERS = 100_000, 60_000_000
# A corpus that holds more of the scored texts than this share would teach from them.
MOST_SHARED = 0.02
# Copies of a labelled text in an epoch, at most.
MOST_COPIES = 8


def load_texts(config: FinetuneConfig) -> Splits:
    """Load the splits and unlabelled texts of `config`. Raises DataError."""
    splits = load_examples(config.data)
    splits.notes += pretraining_overlap(config.model, splits)
    if config.data.unlabelled or config.data.pretraining_text == "none" or config.teacher == "none":
        return splits
    found = splits.findings.get("in_pretraining")
    if not found or config.weights == "random":
        return splits
    if found["shared"] > MOST_SHARED * found["texts"]:
        splits.notes.append("the pretraining corpus holds texts to be scored, so it is not read as unlabelled text")
        return splits
    sources = pretraining_sources(config.model)
    characters = min(MOST_CHARACTERS, (config.budget_seconds or float("inf")) * CHARACTERS_PER_SECOND)
    splits.unlabelled = read_pretraining_texts(sources or [], config.data, splits, characters)
    return splits


def labelled_copies(labelled: int, unlabelled: int, mixed: int, teacher: Teacher | None) -> int:
    """How often an epoch holds each labelled text.

    Once if there is no teacher, or if it was fitted on the unlabelled texts too. Otherwise its labels there add little,
    and each labelled text is repeated up to MOST_COPIES times, until it is as frequent as the others together.
    """
    if teacher is None or (teacher.knows_unlabelled and not mixed):
        return 1
    return min(max(1, round((unlabelled + mixed) / labelled)), MOST_COPIES)


def epoch(labelled: int, others: int, copies: int) -> np.ndarray:
    """Return the texts of an epoch as indices of the labelled texts followed by the others."""
    return np.concatenate([np.tile(np.arange(labelled), copies), labelled + np.arange(others)])
