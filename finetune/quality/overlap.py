"""How many of the scored texts the pretraining corpus holds."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_llm.corpus.config import CorpusConfig, SourceConfig
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.sources import read_source
from mini_llm.engine.config import build_config, read_yaml
from mini_llm.engine.errors import DataError, UserError

from ..examples import Splits
from .normal_form import normal_form, word_hashes, word_ngrams

NGRAM = 8
# A text is contaminated if at least this share of its 8-grams stands in the corpus (PaLM, Chowdhery et al. 2022,
# section 8).
SHARE = 0.7
# Characters read of the corpus, about 3 s per 10 million, and texts that are looked for.
MOST_CHARACTERS = 20_000_000
MOST_TEXTS = 5_000
# Longer documents are cut, so that one file is not held as one text.
PART = 1 << 20


class Overlap(NamedTuple):
    """`shared` of `texts` stand in the corpus; `short` have fewer than 8 words and were not looked for.

    `characters` of the corpus were read; `complete` tells whether that was all of it.
    """

    texts: int
    shared: int
    short: int
    characters: int
    complete: bool

    def __str__(self) -> str:
        read = f"{'all' if self.complete else 'the first'} {self.characters / 1e6:,.1f} million characters"
        note = f"{self.shared:,} of {self.texts:,} scored texts are also in the pretraining corpus ({read} read"
        return note + (f"; {self.short:,} texts under {NGRAM} words not looked for)" if self.short else ")")


def overlap_with_corpus(
    texts: Sequence[str], sources: Iterable[SourceConfig], most_characters: int = MOST_CHARACTERS
) -> Overlap:
    """Count the texts of which the corpus holds at least 70 % of the word 8-grams, anywhere in its documents.

    Reads the sources in their order up to `most_characters`. Raises DataError for a source that cannot be read.
    """
    wanted = [word_ngrams(word_hashes(normal_form(text)), NGRAM) for text in texts]
    grams = np.unique(np.concatenate(wanted)) if wanted else np.zeros(0, dtype=np.uint64)
    found = np.zeros(len(grams), dtype=bool)
    characters, complete = 0, True
    for part in _corpus_parts(sources) if len(grams) else ():
        if characters >= most_characters:
            complete = False
            break
        characters += len(part)
        places = np.searchsorted(grams, hashes := word_ngrams(word_hashes(normal_form(part)), NGRAM))
        places[places == len(grams)] = 0
        found[places[grams[places] == hashes]] = True
    shared = sum(len(own) > 0 and found[np.searchsorted(grams, own)].mean() >= SHARE for own in wanted)
    return Overlap(len(texts), int(shared), sum(len(own) == 0 for own in wanted), characters, complete)


def pretraining_sources(model: str | Path) -> list[SourceConfig] | None:
    """Return the corpus that the run of a pretrained model was trained on; None if no configuration is beside it."""
    place = Path(model)
    for folder in (place, place.parent):
        for name in ("config.yaml", "requested.yaml"):
            if (folder / name).is_file():
                try:
                    corpus = read_yaml(folder / name).get("corpus")
                    return build_config(CorpusConfig, corpus, str(folder / name)).sources if corpus else None
                except UserError:  # of another release; not worth stopping for
                    return None
    return None


def pretraining_overlap(model: str | Path, splits: Splits) -> list[str]:
    """Return the note on scored texts that the model has read in pretraining; none where its corpus is unknown."""
    sources = pretraining_sources(model)
    if not sources:
        return []
    scored = (splits.test or splits.validation)[:MOST_TEXTS]
    try:
        found = overlap_with_corpus([example.text for example in scored], sources)
    except DataError as error:
        return [f"overlap with the pretraining corpus not checked: {error}"]
    splits.findings["in_pretraining"] = found._asdict()
    return [str(found)]


def _corpus_parts(sources: Iterable[SourceConfig]) -> Iterable[str]:
    """Yield the documents, long ones in parts that overlap by 200 characters or more."""
    for source in sources:
        for _, chunks in read_source(source, "replace", ReadReport()):
            held = ""
            for chunk in chunks:
                for start in range(0, len(chunk), PART):
                    held += chunk[start : start + PART]
                    if len(held) >= PART:
                        yield held
                        held = held[-200:]
            if held:
                yield held
