"""BLEU, chrF and ROUGE of an encoder-decoder on pairs of texts."""

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from mini_llm.corpus.tables import column_settings, iter_rows
from mini_llm.engine.errors import DataError
from mini_llm.stages import load

from .rouge import NAMES, rouge
from .subject import Subject
from .tally import ends_of

LONGEST = 256  # tokens of a decoded text, at most
RESAMPLES = 1000


def read_pairs(file: str, source: str, target: str, most: int | None = None) -> list[Any]:
    """Return the pairs of a table. Raises DataError for a missing column, or a row without source or target."""
    make = load("pretrain", "pairs").Pair
    pairs = []
    with column_settings({source: "--source COLUMN", target: "--target COLUMN"}):
        for number, row in enumerate(islice(iter_rows(file, None, [source, target]), most), start=1):
            texts = [row[source], row[target]]
            if any(text is None or not str(text).strip() for text in texts):
                raise DataError(
                    f"{file} row {number:,}: '{source}' or '{target}' is empty. Fill the row in, or remove it"
                )
            pairs.append(make(*map(str, texts), f"{file} row {number:,}"))
    if not pairs:
        raise DataError(f"{file}: no pairs. It needs the columns '{source}' and '{target}'")
    return pairs


def decode(subject: Subject, pairs: Sequence[Any]) -> list[str]:
    """Return the model's greedy text for each source."""
    longest = min(LONGEST, subject.context)
    return load("pretrain", "translation_scores").decode_sources(subject.model, subject.tokenizer, pairs, longest)


def score_pairs(subject: Subject, files: Sequence[str], source: str, target: str, most: int | None) -> dict[str, Any]:
    """Return the scores of each file, with 95 % bootstrap intervals over its pairs, and of copying the source."""
    rows = []
    seconds = 0.0
    for file in files:
        pairs = read_pairs(file, source, target, most)
        start = time.perf_counter()
        texts = decode(subject, pairs)
        seconds += time.perf_counter() - start
        targets, sources = [pair.target for pair in pairs], [pair.source for pair in pairs]
        copied = {f"copy_{name}": value for name, value in corpus_scores(sources, targets, intervals=False).items()}
        rows.append({"file": file, "pairs": len(pairs), **corpus_scores(texts, targets), **copied, "first": texts[0]})
    return {"files": rows, "seconds": seconds}


def corpus_scores(texts: Sequence[str], targets: Sequence[str], intervals: bool = True) -> dict[str, Any]:
    """Return BLEU and chrF of sacrebleu, the mean F1 of ROUGE-1, 2 and L, and exact matches, all from 0 to 100."""
    from sacrebleu import BLEU, CHRF

    found: dict[str, Any] = {}
    resamples = RESAMPLES if intervals and len(texts) > 1 else 1
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        score = metric.corpus_score(list(texts), [list(targets)], n_bootstrap=resamples)
        found[name] = score.score
        if resamples > 1:
            found |= ends_of(name, (score._mean - score._ci, score._mean + score._ci))
    each = [rouge(text, target) for text, target in zip(texts, targets, strict=True)]
    exact = [100.0 * (text == target) for text, target in zip(texts, targets, strict=True)]
    columns = {name: np.array([row[name] for row in each]) for name in NAMES} | {"exact": np.array(exact)}
    draws = np.random.default_rng(0).integers(len(texts), size=(resamples, len(texts)))
    for name, values in columns.items():
        found[name] = float(values.mean())
        if resamples > 1:
            found |= ends_of(name, np.quantile(values[draws].mean(-1), [0.025, 0.975]))
    return found
