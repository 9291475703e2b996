"""Reimplement llama.cpp's tokenization from nothing but the vocabulary in a GGUF file."""

import re
from heapq import heappop, heappush
from typing import Protocol

from gguf import Keys, TokenType

from mini_llm.engine.errors import CheckpointError
from mini_llm.export.vocabulary import PRE_TOKENIZERS, Vocabulary

SPACE = "\u2581"  # SentencePiece's mark for a space


class Encoder(Protocol):
    """Anything that encodes text as llama.cpp does."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Adds nothing; names of control tokens are plain text (parse_special=false)."""


def make_encoder(vocabulary: Vocabulary) -> Encoder:
    """Return the encoder for a vocabulary. Raises CheckpointError for an unknown tokenizer model."""
    kinds = {"llama": SpmEncoder, "gpt2": ByteLevelEncoder, "t5": UnigramEncoder}
    if vocabulary.model not in kinds:
        raise CheckpointError(f"{Keys.Tokenizer.MODEL} is '{vocabulary.model}'; supported are {', '.join(kinds)}")
    return kinds[vocabulary.model](vocabulary)


class SpmEncoder:
    """Merges the adjacent symbols that form the token with the highest score until none do, then spells symbols that
    are not tokens in bytes (llm_tokenizer_spm).

    As in llama.cpp, every vocabulary entry is a token, even '<s>' or '<0x0A>' if merging can spell it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = {token: i for i, token in enumerate(vocabulary.tokens)}
        self._scores = vocabulary.scores or []
        # llama.cpp adds a space before a text by default.
        self._prefix = SPACE if vocabulary.settings.get(Keys.Tokenizer.ADD_PREFIX, True) else ""
        whole = vocabulary.of_type(TokenType.USER_DEFINED)
        whole.sort(key=len, reverse=True)
        self._user_defined = re.compile("|".join(map(re.escape, whole))) if whole else None

    def encode(self, text: str) -> list[int]:
        ids, start = [], 0
        for match in self._user_defined.finditer(text) if self._user_defined else ():
            ids += [*self._merge(text[start : match.start()]), self._ids[match[0]]]
            start = match.end()
        return ids + self._merge(text[start:])

    def _merge(self, text: str) -> list[int]:
        if not text:
            return []
        symbols = list(self._prefix + text.replace(" ", SPACE))
        # Doubly linked list of symbols; a merge keeps the left symbol and empties the right one.
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, str]] = []

        def propose(left: int, right: int) -> None:
            if left >= 0 and right >= 0 and (joined := symbols[left] + symbols[right]) in self._ids:
                heappush(queue, (-self._scores[self._ids[joined]], left, right, joined))

        for right in range(1, len(symbols)):
            propose(right - 1, right)
        while queue:
            _, left, right, joined = heappop(queue)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
                continue
            symbols[left], symbols[right] = joined, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            propose(before[left], left)
            propose(left, after[left])
        return [i for symbol in symbols if symbol for i in self._ids_of(symbol)]

    def _ids_of(self, symbol: str) -> list[int]:
        if symbol in self._ids:
            return [self._ids[symbol]]
        return [self._ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


class ByteLevelEncoder:
    """Byte-level BPE by the `tokenizers` library, with the tokens, merges and pre-tokenizer that the file names."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

        patterns = next(patterns for patterns, name in PRE_TOKENIZERS.items() if name == vocabulary.pre)
        merges = [(left, right) for left, right in (merge.split(" ") for merge in vocabulary.merges or [])]
        ids = {token: i for i, token in enumerate(vocabulary.tokens)}
        # Like llama.cpp, look up whole words before merging only for this pre-tokenizer.
        whole = vocabulary.pre == "llama-bpe"
        self._backend = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=whole))
        bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        words = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        self._backend.pre_tokenizer = pre_tokenizers.Sequence([*words, bytes_of_words])
        whole_tokens = vocabulary.of_type(TokenType.USER_DEFINED)
        self._backend.add_tokens([AddedToken(token, normalized=False) for token in whole_tokens])

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids


class UnigramEncoder:
    """Unigram by SentencePiece, with the tokens, scores and normalization rules of the file."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        proto, settings = sentencepiece_model_pb2.ModelProto(), vocabulary.settings  # ty: ignore[missing-attribute]
        for token, score, kind in zip(vocabulary.tokens, vocabulary.scores or [], vocabulary.types, strict=True):
            proto.pieces.add(piece=token, score=score, type=int(kind))
        proto.trainer_spec.model_type = proto.trainer_spec.UNIGRAM
        proto.normalizer_spec.add_dummy_prefix = settings[Keys.Tokenizer.ADD_PREFIX]
        proto.normalizer_spec.remove_extra_whitespaces = settings[Keys.Tokenizer.REMOVE_EXTRA_WS]
        proto.normalizer_spec.precompiled_charsmap = bytes(settings.get(Keys.Tokenizer.PRECOMPILED_CHARSMAP, b""))
        self._processor = SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)
