"""Score an encoder-decoder with BLEU and chrF on held-out pairs, compared with copying the source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from mini_llm.engine.batch import ordered_batches
from mini_llm.model import Seq2SeqLM, load_model
from mini_llm.model.decoding import greedy_decode

from .objectives.pairs import encode_pairs, pad
from .pairs import Pair

ROWS = 64  # sources decoded together
SHOWN = 20  # example rows to return


def score_pairs(
    directory: Path, tokenizer: Any, pairs: Sequence[Pair], longest: int, device: torch.device
) -> tuple[dict[str, float], list[list[str]]]:
    """Score the model in `directory` and copying. Return the scores and example rows (source, target, model's text).

    BLEU (Papineni et al. 2002) and chrF (Popovic 2015) are computed by sacrebleu, from 0 to 100. `exact` is the
    percentage of exact matches. Decodes at most `longest` tokens per text.
    """
    texts = decode_sources(load_model(directory).to(device), tokenizer, pairs, longest)
    targets, sources = [pair.target for pair in pairs], [pair.source for pair in pairs]
    figures = compare(texts, targets) | {f"copy_{name}": value for name, value in compare(sources, targets).items()}
    return figures, [[pair.source, pair.target, text] for pair, text in zip(pairs[:SHOWN], texts, strict=False)]


def decode_sources(model: Seq2SeqLM, tokenizer: Any, pairs: Sequence[Pair], longest: int) -> list[str]:
    """Return the model's greedy text for each source."""
    device, encoded = model.lm_head.weight.device, encode_pairs(pairs, tokenizer)
    texts = [""] * len(pairs)
    for rows in ordered_batches([len(ids) for ids in encoded.sources], ROWS):
        ids, real = pad([encoded.sources[i] for i in rows], tokenizer.pad_id or 0, model.config.max_position_embeddings)
        inputs, mask = (torch.from_numpy(array).to(device) for array in (ids, real.astype("int64")))
        for i, answer in zip(rows, greedy_decode(model, inputs, mask, longest), strict=True):
            texts[i] = tokenizer.decode(answer)
    return texts


def compare(texts: list[str], targets: list[str]) -> dict[str, float]:
    """Return BLEU, chrF and the percentage of exact matches of `texts` against one reference each."""
    from sacrebleu import corpus_bleu, corpus_chrf

    exact = sum(text == target for text, target in zip(texts, targets, strict=True)) / len(targets)
    return {
        "bleu": corpus_bleu(texts, [targets]).score,
        "chrf": corpus_chrf(texts, [targets]).score,
        "exact": 100 * exact,
    }


def score_table(figures: dict[str, float], title: str) -> Table:
    """Return the scores of score_pairs as a table."""
    table = Table(title=title, title_justify="left")
    for column in ("", "BLEU", "chrF", "exact %"):
        table.add_column(column)
    for name, prefix in (("model", ""), ("copying the source", "copy_")):
        table.add_row(name, *(f"{figures[prefix + key]:.1f}" for key in ("bleu", "chrf", "exact")))
    return table
