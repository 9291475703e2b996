"""Compare the token ids and the greedy text of a GGUF file with ours."""

import random
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import Keys, LlamaFileType, TokenType
from torch import Tensor

from mini_llm.export.encoders import Encoder
from mini_llm.export.llama_cpp import LlamaCpp
from mini_llm.export.vocabulary import Vocabulary
from mini_llm.export.write import Source
from mini_llm.model import CausalLM, KVCache, Seq2SeqLM
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.gate import hostile_strings
from mini_llm.tokenization.load import load_tokenizer

PROMPTS = ("The ", "def read_lines(path):\n    ", "Once upon a time", "import os\n", "What is the meaning of")
LENGTH = 64  # tokens of greedy text
# Largest allowed difference of logits for an F32 file: llama.cpp looks GELU up in a table of F16 values.
TOLERANCE = 0.1


@dataclass
class Finding:
    """One row of the table. `passed` is None for information that does not decide the result."""

    what: str
    seen: str
    passed: bool | None


def fuzz(vocabulary: Vocabulary, count: int = 300) -> list[str]:
    """Return hostile strings, prompts and `count` random strings of vocabulary tokens, special names included."""
    rng = random.Random(0)
    tokens = [token.replace("\u2581", " ") for token in vocabulary.tokens]
    strings = ["".join(rng.choices(tokens, k=rng.randrange(1, 20))) for _ in range(count)]
    return [*hostile_strings().values(), *PROMPTS, *strings]


def check_ids(source: Source, what: str, encoder: Encoder) -> Finding:
    """Compare our ids with those of `encoder`. Only texts without the name of a special token decide the result.

    When merging spells the name of a special token ('<s' + '>'), llama.cpp encodes it as that token; our tokenizers do
    not. Such texts are counted but do not fail the check.
    """
    vocabulary = source.vocabulary
    kinds = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE, TokenType.UNUSED)
    names = vocabulary.of_type(*kinds)
    texts = fuzz(vocabulary)
    if vocabulary.pre == "qwen2":
        # llama.cpp skips the normalizer of this tokenizer.
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    tokenizer = load_tokenizer(source.directory, len(vocabulary.tokens))
    if isinstance(tokenizer, FastTokenizer):
        # The names of special tokens are plain text in `encoder`.
        tokenizer = tokenizer.plain()
    ours = tokenizer.encode_batch(texts)
    different = [text for text, ids in zip(texts, ours, strict=True) if encoder.encode(text) != ids.tolist()]
    plain = [text for text in different if not any(name in text for name in names)]
    seen = f"{len(texts) - len(different):,} of {len(texts):,} strings have the same ids"
    if plain:
        seen = f"{len(plain)} of {len(texts):,} strings have different ids, first {plain[0][:40]!r}"
    elif different:
        seen += f"; {len(different)} spell a special token's name, which llama.cpp reads as that token"
    return Finding(what, seen, not plain)


def check_runtime(source: Source, file: Path, fields: dict[str, Any]) -> list[Finding]:
    """Compare with llama.cpp itself: ids, bos and eos tokens, and greedy text, which must be equal for an F32 file."""
    tokenizer, settings = load_tokenizer(source.directory, len(source.vocabulary.tokens)), source.vocabulary.settings
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    before = [bos] if settings[Keys.Tokenizer.ADD_BOS] and bos is not None else []
    after = [eos] if settings[Keys.Tokenizer.ADD_EOS] and eos is not None else []
    framed = [[*before, *tokenizer.encode(prompt), *after] for prompt in PROMPTS]
    limit = source.model.config.max_position_embeddings
    # Leave at least half of a short context for the new tokens.
    sources = [ids[: max(1, limit // 2)] for ids in framed]
    longest = max(map(len, sources))
    length = min(LENGTH, limit - longest)
    runtime = LlamaCpp(file, longest + length)
    alike = [runtime.frame(prompt) == ids for prompt, ids in zip(PROMPTS, framed, strict=True)]
    findings = [
        check_ids(source, "ids of a text, llama.cpp itself", runtime),
        Finding("bos and eos tokens, llama.cpp itself", f"{sum(alike)} of {len(alike)} prompts", all(alike)),
    ]
    exact = fields.get(Keys.General.FILE_TYPE) == LlamaFileType.ALL_F32
    agreed, equal, ties, furthest = [], 0, 0, 0.0
    for ids in sources:
        count, gap, difference = compare_greedy(source.model, runtime, ids, length)
        furthest = max(furthest, difference)
        agreed.append(count)
        equal += gap is None
        ties += gap is not None and gap <= 2 * difference
    seen = (
        f"{equal} of {len(agreed)} texts are equal for {length} tokens or until they end"
        f" ({', '.join(map(str, agreed))}); logits differ by {furthest:.2g} at most"
    )
    if ties:
        seen += f"; {ties} differ only where that changes the best token"
    passed = (equal + ties == len(agreed) and furthest <= TOLERANCE) if exact else None
    return [*findings, Finding("greedy text, llama.cpp itself", seen, passed)]


def compare_greedy(
    model: CausalLM | Seq2SeqLM, runtime: LlamaCpp, ids: list[int], length: int
) -> tuple[int, float | None, float]:
    """Decode greedily with both. Return (equal tokens, gap, largest difference of logits).

    The gap is the difference of our logits between the two choices where the texts diverge, None if they do not. A text
    ends after `length` tokens or at the eos token.
    """
    ended = model.config.eos_token_id
    count, difference = 0, 0.0
    for count, (mine, other) in enumerate(zip(greedy(model, ids, length), runtime.greedy(ids, length), strict=True)):
        (token, logits), (their_token, their_logits) = mine, other
        difference = max(difference, float(np.abs(logits - their_logits).max()))
        if token != their_token:
            return count, float(logits[token] - logits[their_token]), difference
        if token == ended:
            return count + 1, None, difference
    return count + 1, None, difference


@torch.inference_mode()
def greedy(model: CausalLM | Seq2SeqLM, ids: list[int], length: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (best token, logits (V,)) after `ids`, then after each best token, `length` times; see LlamaCpp.greedy."""
    cache, memory = KVCache(model.config, 1, len(ids) + length), None
    if isinstance(model, Seq2SeqLM):
        memory = model.trunk.encoder(torch.tensor([ids]))
        ids = [model.config.start_token]
    for _ in range(length):
        hidden = _states(model, torch.tensor([ids]), cache, memory)
        logits = model.predict(hidden[:, -1])[0].numpy()
        ids = [int(logits.argmax())]
        yield ids[0], logits


def _states(model: CausalLM | Seq2SeqLM, ids: Tensor, cache: KVCache, memory: Tensor | None) -> Tensor:
    if isinstance(model, Seq2SeqLM):
        return model.trunk.decoder(ids, None, cache, memory=memory)
    return model.trunk(ids, None, cache)
