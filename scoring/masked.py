"""Masked loss and accuracy of an encoder with exact, seeded masks, and its pseudo-perplexity."""

import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from mini_llm.engine.errors import CheckpointError, DataError, NonFiniteError

from .decoder import DomainScores, with_unit
from .likelihood import BATCH_TOKENS
from .subject import Subject
from .tally import Tally, ends_of
from .texts import Document, iter_texts

PROBABILITY = 0.15
BLOCK_TOKENS = 32  # masked tokens that a bootstrap resamples together where there are few documents
BATCHES = 16  # rows of so many batches are sorted by length together


class MaskedRow(NamedTuple):
    """A framed window with hidden tokens: `inputs` to read, and the `labels` of `positions`."""

    inputs: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


def framed_windows(subject: Subject, text: str) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (ids with the special tokens around them, number of ids before the text) for each window of `text`."""
    before, after = subject.frame
    inner = subject.context - len(before) - len(after)
    ids = subject.tokenizer.encode(text)
    for start in range(0, len(ids), inner):
        yield np.array([*before, *ids[start : start + inner], *after]), len(before)


def mask_row(ids: np.ndarray, first: int, count: int, subject: Subject, generator: np.random.Generator) -> MaskedRow:
    """Hide round(0.15 * count) tokens, at least one, of the `count` from `first` on: 80 % become <mask>, 10 % a random
    ordinary token, 10 % stay (Devlin et al. 2018)."""
    tokenizer = subject.tokenizer
    chosen = max(1, round(PROBABILITY * count))
    positions = first + np.sort(generator.choice(count, chosen, replace=False))
    labels = ids[positions]
    ordinary = subject.ordinary_ids
    action, substitutes = generator.random(chosen), ordinary[generator.integers(len(ordinary), size=chosen)]
    shown = np.where(action < 0.8, tokenizer.mask_id, np.where(action < 0.9, substitutes, labels))
    inputs = ids.copy()
    inputs[positions] = shown
    return MaskedRow(inputs, positions, labels)


def masked_rows(subject: Subject, document: Document, number: int, seed: int) -> list[MaskedRow]:
    """Return the windows of a document with masks that depend on (seed, number of the document, window) only."""
    edges = sum(map(len, subject.frame))
    return [
        mask_row(ids, first, len(ids) - edges, subject, np.random.default_rng((seed, number, window)))
        for window, (ids, first) in enumerate(framed_windows(subject, document.text))
    ]


@torch.inference_mode()
def predict_rows(subject: Subject, rows: Sequence[MaskedRow], batch_tokens: int) -> list[tuple[np.ndarray, ...]]:
    """Return (log-probability, confidence, correct) of the labels of each row. Raises NonFiniteError."""
    found: list[tuple[np.ndarray, ...]] = [()] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].inputs))
    while order:
        size = max(1, batch_tokens // len(rows[order[0]].inputs))
        chosen, order = order[:size], order[size:]
        batch = [rows[i] for i in chosen]
        length, most = max(len(row.inputs) for row in batch), max(len(row.labels) for row in batch)
        ids, mask = np.zeros((2, len(batch), length), dtype=np.int64)
        positions = np.zeros((len(batch), most), dtype=np.int64)
        for i, row in enumerate(batch):
            ids[i, : len(row.inputs)], mask[i, : len(row.inputs)] = row.inputs, 1
            positions[i, : len(row.positions)] = row.positions
        inputs = [torch.from_numpy(array).to(subject.device) for array in (ids, mask, positions)]
        logits = subject.model(*inputs)
        logits = (logits[0] if isinstance(logits, tuple) else logits).float()  # B M V
        probabilities = logits.log_softmax(-1).cpu().numpy()
        for i, row in enumerate(batch):
            values = probabilities[i, : len(row.labels)].astype(np.float64)
            best = values.argmax(-1)
            chosen_values = values[np.arange(len(row.labels)), row.labels]
            if not np.isfinite(chosen_values).all():
                raise NonFiniteError("the model's logits are not finite: its weights are damaged")
            found[chosen[i]] = chosen_values, np.exp(values.max(-1)), best == row.labels
    return found


def score_encoder(
    subject: Subject,
    files: Sequence[str],
    column: str = "text",
    seed: int = 0,
    most: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> DomainScores:
    """Score the masked tokens of the first `most` documents of each file. Raises CheckpointError, DataError."""
    check_mask(subject)
    found = DomainScores()
    for file in files:
        documents, unit = with_unit(islice(iter_texts(file, column), most))
        tally = found.tallies[file] = Tally(unit)
        start = time.perf_counter()
        for _, _, scores in score_masked_documents(subject, documents, seed, batch_tokens):
            units = np.arange(len(scores[0])) // BLOCK_TOKENS if unit == "blocks" else None
            tally.add(-scores[0], scores[1], scores[2], 0, units=units)
        found.seconds += time.perf_counter() - start
        if not tally.documents:
            raise DataError(f"{file}: no text in it. Check the file, or name the column of the text: --text COLUMN")
        documents = "1 document" if tally.documents == 1 else f"{tally.documents:,} documents"
        print(f"{file}: {documents} scored", file=sys.stderr)
    return found


def score_masked_documents(
    subject: Subject, documents: Iterator[Document], seed: int, batch_tokens: int
) -> Iterator[tuple[Document, int, tuple[np.ndarray, ...]]]:
    """Yield (document, its number, its masked tokens' scores as predict_rows returns them)."""
    numbered = enumerate(documents)
    while True:
        group: list[tuple[Document, int, list[MaskedRow]]] = []
        size = 0
        for number, document in numbered:
            rows = masked_rows(subject, document, number, seed)
            if rows:
                group.append((document, number, rows))
                size += sum(len(row.inputs) for row in rows)
            if size >= BATCHES * batch_tokens:
                break
        if not group:
            return
        scores = iter(predict_rows(subject, [row for _, _, rows in group for row in rows], batch_tokens))
        for document, number, rows in group:
            joined = [np.concatenate(column) for column in zip(*islice(scores, len(rows)), strict=True)]
            yield document, number, tuple(joined)


def pseudo_perplexity(
    subject: Subject,
    files: Sequence[str],
    column: str,
    tokens: int,
    seed: int,
    most: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, Any]:
    """Return exp(-mean log p(token | all others)) of `tokens` random tokens, each masked alone in its window (Salazar
    et al. 2020, equation 2), with the 95 % interval of a bootstrap over these tokens."""
    generator = np.random.default_rng((seed, 1))
    kept: list[MaskedRow] = []
    seen = 0
    for document in (d for file in files for d in islice(iter_texts(file, column), most)):
        for ids, first in framed_windows(subject, document.text):
            edges = sum(map(len, subject.frame))
            for position in range(first, first + len(ids) - edges):
                # Reservoir sampling (Vitter 1985, algorithm R).
                seen += 1
                slot = len(kept) if len(kept) < tokens else int(generator.integers(seen))
                if slot < tokens:
                    inputs = ids.copy()
                    inputs[position] = subject.tokenizer.mask_id
                    row = MaskedRow(inputs, np.array([position]), ids[[position]])
                    kept[slot : slot + 1] = [row]
    nats = -np.array([scores[0][0] for scores in predict_rows(subject, kept, batch_tokens)])
    draws = np.random.default_rng(seed).integers(len(nats), size=(2000, len(nats)))
    low, high = np.exp(np.quantile(nats[draws].mean(-1), [0.025, 0.975]))
    value = {"pseudo_perplexity": float(np.exp(nats.mean()))}
    return {**value, **ends_of("pseudo_perplexity", (low, high)), "pseudo_perplexity_tokens": len(nats)}


def check_mask(subject: Subject) -> None:
    if subject.tokenizer.mask_id is None:
        raise CheckpointError(
            f"{subject.directory}: the tokenizer has no mask token, so its masked loss is undefined. "
            "Use the tokenizer that the model was pretrained with"
        )
