"""Loss, perplexity, bits per byte and calibration of a decoder on files, each file a domain."""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from mini_llm.engine.errors import CheckpointError, DataError

from .likelihood import BATCH_TOKENS, TokenScores, score_windows
from .subject import Subject
from .tally import FEW_DOCUMENTS, Tally, blocks, total
from .texts import Document, iter_texts
from .windows import Window, rolling_windows

ENCODED = 64  # documents encoded at once


@dataclass
class DomainScores:
    """The tally of each file, and how long scoring took."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self, seed: int, per_byte: bool = True) -> dict[str, Any]:
        """Return the rows of all files, with one for all of them together if there are several."""
        named = dict(self.tallies)
        if len(named) > 1:
            named["all files"] = total(list(self.tallies.values()))
        rows = []
        for name, tally in named.items():
            positions = {"loss_by_position": tally.positions()} if tally.position_tokens.any() else {}
            rows.append({"file": name, **tally.scores(seed, per_byte), **positions})
        tokens = sum(tally.units()[:, 1].sum() for tally in self.tallies.values())
        speed = {"seconds": self.seconds, "milliseconds_per_token": 1e3 * self.seconds / tokens}
        return {"files": rows, **speed}


def score_decoder(
    subject: Subject,
    files: Sequence[str],
    column: str = "text",
    stride: int | None = None,
    most: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> DomainScores:
    """Score the first `most` documents of each file. Every token counts once; see windows.rolling_windows."""
    found = DomainScores()
    for file in files:
        documents, unit = with_unit(islice(iter_texts(file, column), most))
        tally = found.tallies[file] = Tally(unit)
        start = time.perf_counter()
        for document, scores in score_documents(subject, documents, stride, batch_tokens):
            size = len(document.text.encode())
            units = blocks(byte_ends(subject.tokenizer, document.text), size) if unit == "blocks" else None
            tally.add(-scores.log_probability, scores.confidence, scores.correct, size, scores.context, units)
        found.seconds += time.perf_counter() - start
        if not tally.documents:
            raise DataError(f"{file}: no text in it. Check the file, or name the column of the text: --text COLUMN")
        documents = "1 document" if tally.documents == 1 else f"{tally.documents:,} documents"
        print(f"{file}: {documents} scored", file=sys.stderr)
    return found


def with_unit(documents: Iterator[Document]) -> tuple[Iterator[Document], str]:
    """Return the documents, and what a bootstrap can resample: "documents", or "blocks" where there are too few."""
    first = list(islice(documents, FEW_DOCUMENTS))
    return chain(first, documents), "documents" if len(first) == FEW_DOCUMENTS else "blocks"


def score_documents(
    subject: Subject, documents: Iterator[Document], stride: int | None = None, batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[Document, TokenScores]]:
    """Yield each document that has a token with the scores of its tokens, joined over its windows."""
    prefix, context = prefix_id(subject), subject.context
    waiting: list[tuple[Document, int]] = []  # documents whose windows are on their way, with the number of windows

    def windows() -> Iterator[Window]:
        while group := list(islice(documents, ENCODED)):
            encoded = subject.tokenizer.encode_batch([document.text for document in group])
            for document, ids in zip(group, encoded, strict=True):
                cut = list(rolling_windows(ids.tolist(), prefix, context, stride))
                if cut:
                    waiting.append((document, len(cut)))
                    yield from cut

    parts: list[TokenScores] = []
    for scores in score_windows(subject.model, windows(), batch_tokens):  # ty: ignore[invalid-argument-type]
        parts.append(scores)
        document, count = waiting[0]
        if len(parts) == count:
            waiting.pop(0)
            yield document, TokenScores(*map(np.concatenate, zip(*parts, strict=True)))
            parts = []


def prefix_id(subject: Subject) -> int:
    """Return the token before a text: bos, or eos for a tokenizer without one, as lm-eval does."""
    for token in (subject.tokenizer.bos_id, subject.tokenizer.eos_id):
        if token is not None:
            return token
    raise CheckpointError(f"{subject.directory}: the tokenizer has neither a bos nor an eos token to start a text with")


def byte_ends(tokenizer: Any, text: str) -> np.ndarray:
    """Return where each token of `text` ends, in bytes of UTF-8. A token that completes no character adds none."""
    stream = tokenizer.stream()
    return np.cumsum([len(stream.push(token).encode()) for token in tokenizer.encode(text)])
