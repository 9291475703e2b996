"""Repetition and diversity of sampled texts, beside those of real ones."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mini_llm.stages import load

WORD = re.compile(r"\w+|[^\w\s]")


def write_samples(path: Path, count: int, tokens: int, seed: int, device: str, dtype: str) -> list[str]:
    """Return `count` texts of at most `tokens` tokens, sampled from the model's own distribution without a prompt."""
    settings = load("generate", "config").GenerateConfig(temperature=1, top_p=1, max_new_tokens=tokens, seed=seed)
    generator = load("generate", "load").load_generator(path, settings, device, dtype)
    prompt = "" if generator.tokenizer.bos_id is not None else "\n"
    return [sample.text for sample in generator.write([generator.sample(prompt, i) for i in range(count)])]


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """Return distinct_1 to distinct_4: different n-grams of words in all texts over all n-grams (Li et al. 2016), and
    repetition: the share of 4-grams of a text that occurred earlier in it, averaged (rep-4, Welleck et al. 2020)."""
    words = [WORD.findall(text) for text in texts]
    found = {}
    for n in range(1, 5):
        grams = [gram for text in words for gram in ngrams(text, n)]
        found[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else 0.0
    rates = [1 - len(set(grams)) / len(grams) for text in words if (grams := ngrams(text, 4))]
    return {**found, "repetition": sum(rates) / len(rates) if rates else 0.0, "words": sum(map(len, words))}


def describe_samples(texts: Sequence[str], real: Sequence[str]) -> dict[str, Any]:
    """Return the diversity of samples, and that of as many real texts cut to the same number of words."""
    lengths = [len(WORD.findall(text)) for text in texts]
    cut = [" ".join(WORD.findall(text)[:length]) for text, length in zip(real, lengths, strict=False)]
    return {"samples": diversity(texts), "real_texts": diversity(cut), "first": texts[0] if texts else ""}
