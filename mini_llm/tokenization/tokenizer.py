"""Convert text to ids and back with SentencePiece, losslessly and in parallel.

tokenizer = load_tokenizer("runs/tokenizer")
ids = tokenizer.encode("def main():")    # never a special id
tokenizer.decode(ids)                    # the same text
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.kernels.build import load_library
from mini_llm.engine.run.files import read_json
from mini_llm.engine.run.machine import usable_cores
from mini_llm.tokenization.bpe import SOURCE, BytePairEncoder
from mini_llm.tokenization.stream import StreamDecoder, decode

SPACE = "\u2581"  # SentencePiece's mark for a space; the only character that does not round-trip
SHA256_KEY = "tokenizer_model_sha256"  # in tokenizer_config.json

_LARGEST_MODEL = 64 << 20  # bytes; a vocabulary of a million tokens is about 20 MB
# SentencePiece slows down on long strings (measured: 6 MB/s at 4,000 characters, 2 MB/s at a million) and gives each
# string to one thread, so longer ones are split.
_SEGMENT = 4096
# Characters per segment for the C++ encoder, which gives each segment to one thread.
_FAST_SEGMENT = 1 << 17
_FEW = 1 << 14  # characters; below this SentencePiece finishes sooner than the C++ encoder


class Tokenizer:
    """A SentencePiece model, read from `directory`. Ids of special tokens that it lacks are None.

    `frame` (the ids added before and after a text) is None: they depend on the kind of model, not on the tokenizer.
    """

    frame: tuple[list[int], list[int]] | None = None
    remark: str | None = None  # on loading it, to show to the user

    def __init__(self, model: bytes, directory: Path | str):
        from sentencepiece import SentencePieceProcessor

        self.directory = Path(directory)
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        try:
            processor = SentencePieceProcessor(model_proto=model)
            self._vocabulary = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        except Exception as error:  # a damaged file can raise anything in the library
            raise CheckpointError(
                f"{self.directory / 'tokenizer.model'}: not a SentencePiece model, or damaged "
                f"({str(error)[:120]}). Copy it again from its source, or train it again"
            ) from None
        self._processor = processor
        controls = {i for i in range(len(self._vocabulary)) if processor.is_control(i)}
        self.vocab_size = len(self._vocabulary)
        self.unk_id: int | None = self._optional(processor.unk_id())
        self.bos_id: int | None = self._optional(processor.bos_id())
        self.eos_id: int | None = self._optional(processor.eos_id())
        self.pad_id: int | None = self._optional(processor.pad_id())
        named = {self._vocabulary[i]: i for i in controls}
        self.mask_id: int | None = named.get("<mask>")
        self.cls_id: int | None = named.get("<cls>")
        self.sep_id: int | None = named.get("<sep>")
        self.special_ids: frozenset[int] = frozenset(controls | ({self.unk_id} if self.unk_id is not None else set()))

    @classmethod
    def load(cls, directory: Path | str) -> "Tokenizer":
        """Read `directory`/tokenizer.model. Raises CheckpointError if missing, damaged or not the recorded one."""
        path = Path(directory) / "tokenizer.model"
        try:
            size = path.stat().st_size
            if size > _LARGEST_MODEL:
                raise CheckpointError(f"{path}: {size / 1e6:.0f} MB is too large for a tokenizer; name the right file")
            tokenizer = cls(path.read_bytes(), directory)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the tokenizer ({error.strerror or error})") from None
        tokenizer._check_recorded_hash()
        return tokenizer

    @property
    def kind(self) -> str:
        """The algorithm, for display: "SentencePiece BPE" or "SentencePiece Unigram"."""
        trainer = self._proto.trainer_spec
        return "SentencePiece BPE" if trainer.model_type == trainer.BPE else "SentencePiece Unigram"

    @cached_property
    def adds_bos(self) -> bool:
        """Whether a decoder's text begins with the bos token: yes, unless tokenizer_config.json says no."""
        config = read_json(self.directory / "tokenizer_config.json")
        return not isinstance(config, dict) or config.get("add_bos_token") is not False

    @property
    def document_frame(self) -> tuple[list[int], list[int]]:
        """The ids around a document in a token store."""
        before, after = ([] if i is None else [i] for i in (self.bos_id, self.eos_id))
        return before, after

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a special id: '<s>' in a text is three characters. Adds nothing."""
        if len(text) > _SEGMENT:
            return self.encode_batch([text])[0].tolist()
        return self._run([text], 1)[0].tolist()

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """Return the ids of each text (int32), equal to `encode`, on `threads` threads (None: one per usable core)."""
        threads = threads or usable_cores()
        if sum(map(len, texts)) < _FEW or (fast := self._fast) is None:
            return self._encode_in_segments(texts, _SEGMENT, lambda segments: self._run(segments, threads))
        return self._encode_in_segments(texts, _FAST_SEGMENT, lambda segments: self._run_fast(fast, segments, threads))

    def _encode_in_segments(
        self, texts: Sequence[str], size: int, encode: Callable[[list[str]], list[np.ndarray]]
    ) -> list[np.ndarray]:
        """Return the ids of each text, encoded in segments of about `size` characters."""
        cuts = [[text] if len(text) <= size else self._cut(text, size) for text in texts]
        encoded = encode([segment for cut in cuts for segment in cut])
        ids, start = [], 0
        for cut in cuts:
            ids.append(encoded[start] if len(cut) == 1 else np.concatenate(encoded[start : start + len(cut)]))
            start += len(cut)
        return ids

    @cached_property
    def _fast(self) -> BytePairEncoder | None:
        """The C++ encoder, or None without a compiler or for a model whose texts cannot be encoded in segments."""
        processor, every = self._processor, range(self.vocab_size)
        byte_ids = {int(self._vocabulary[i][3:5], 16): i for i in every if processor.is_byte(i)}
        # SentencePiece matches a special token of one character in text, and spells U+2581 in bytes if it has no token.
        odd = SPACE not in self._vocabulary or any(len(self._vocabulary[i]) == 1 for i in self.special_ids)
        if not self.lossless or odd or len(byte_ids) < 256 or any(map(processor.is_unused, every)):
            return None
        library, _ = load_library(SOURCE)
        if library is None:
            return None
        texts = [b"" if i in self.special_ids or processor.is_byte(i) else self._bytes[i] or b"" for i in every]
        # SentencePiece turns spaces into U+2581 first, so a token with a plain space never matches.
        tokens = [b"" if " " in token else text for token, text in zip(self._vocabulary, texts, strict=True)]
        return BytePairEncoder(library, tokens, [*map(self.score, every)], self.user_defined_ids, byte_ids)

    def _run_fast(self, encoder: BytePairEncoder, texts: list[str], threads: int) -> list[np.ndarray]:
        try:
            data = [text.replace(SPACE, " ").encode() for text in texts]
        except UnicodeEncodeError:
            data = [_valid(text).replace(SPACE, " ").encode() for text in texts]
        return encoder.encode(data, threads)

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (ids, spans) of each text: ids as `encode_batch`, spans (tokens, 2) the characters from and to.

        A token may begin with white space. Tokens that spell one character in bytes share its span.
        """
        if not self.lossless:
            return [self._spans_of_pieces(text) for text in texts]
        return [
            (ids, byte_spans(text.replace(SPACE, " "), [len(self._bytes[i] or b"") for i in ids.tolist()]))
            for text, ids in zip(texts, self.encode_batch(texts), strict=True)
        ]

    def _spans_of_pieces(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        text = _valid(text)
        data = np.frombuffer(text.encode(), np.uint8)
        # SentencePiece counts bytes: count the characters that begin before each byte.
        characters = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
        pieces = self._processor.encode(text, return_type="proto").pieces
        spans = characters[np.array([(piece.begin, piece.end) for piece in pieces], dtype=np.int64).reshape(-1, 2)]
        for i in range(len(pieces) - 2, -1, -1):
            # The last byte token of a character has its place, the others have none.
            if pieces[i].begin == pieces[i].end == pieces[i + 1].begin:
                spans[i] = spans[i + 1]
        return np.array([piece.id for piece in pieces], dtype=np.int32), spans

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, skipping special ids and ids outside the vocabulary (a model's padding rows)."""
        return decode(ids, self._token_bytes)

    def stream(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return StreamDecoder(self._token_bytes)

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of `text` as spelled in the vocabulary: U+2581 for a space, '<0x0A>' for a byte."""
        return [self._vocabulary[i] for i in self.encode(text)]

    def id_to_token(self, token_id: int) -> str:
        """Return the token with this id. Raises IndexError."""
        return self._vocabulary[token_id]

    def score(self, token_id: int) -> float:
        """Return the merge priority of this token: the highest score merges first."""
        return self._processor.get_score(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the UTF-8 bytes that a token adds inside a text, None for special ids and ids without text."""
        return self._token_bytes(token_id, False)

    def is_byte(self, token_id: int) -> bool:
        """Return whether this id is a byte token, which spells one byte of a character without a token."""
        return self._processor.is_byte(token_id)

    @cached_property
    def user_defined_ids(self) -> frozenset[int]:
        """Ids of user-defined tokens, which are matched before any merge; only foreign models have them."""
        return frozenset(i for i, piece in enumerate(self._proto.pieces) if piece.type == piece.USER_DEFINED)

    @cached_property
    def _proto(self) -> Any:
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self.model)  # ty: ignore[missing-attribute]

    @cached_property
    def lossless(self) -> bool:
        """Whether this is a byte-fallback BPE without normalization, as train_tokenizer makes it."""
        trainer, normalizer = self._proto.trainer_spec, self._proto.normalizer_spec
        return (
            trainer.model_type == trainer.BPE
            and trainer.byte_fallback
            and not trainer.treat_whitespace_as_suffix
            and not normalizer.precompiled_charsmap
            and not normalizer.add_dummy_prefix
            and not normalizer.remove_extra_whitespaces
        )

    def _run(self, texts: list[str], threads: int) -> list[np.ndarray]:
        try:
            return self._processor.encode(texts, return_type="numpy", num_threads=threads)
        except (RuntimeError, TypeError, UnicodeError):
            # JSON can put lone surrogates into a str; they have no UTF-8 encoding.
            return self._processor.encode([_valid(text) for text in texts], return_type="numpy", num_threads=threads)

    def _cut(self, text: str, size: int) -> list[str]:
        """Split a long text where no token can cross, so that the ids of the segments are the ids of the text."""
        if not self.lossless:
            return [text]
        inner, segments, start = self._inner_pairs, [], 0
        while len(text) - start > size:
            end = start + size
            while end < len(text) and text[end - 1 : end + 1] in inner:
                end += 1
            segments.append(text[start:end])
            start = end
        return segments + [text[start:]] if start < len(text) else segments

    @cached_property
    def _inner_pairs(self) -> frozenset[str]:
        """Every pair of adjacent characters that some token contains."""
        pairs = {token[i : i + 2] for token in self._vocabulary for i in range(len(token) - 1)}
        for pair in [pair for pair in pairs if SPACE in pair]:
            pairs |= {a + b for a in _as_text(pair[0]) for b in _as_text(pair[1])}
        return frozenset(pairs)

    @cached_property
    def _bytes(self) -> list[bytes | None]:
        table: list[bytes | None] = []
        for i, token in enumerate(self._vocabulary):
            if i in self.special_ids or self._processor.is_unused(i):
                table.append(None)
            elif self._processor.is_byte(i):
                table.append(bytes.fromhex(token[3:5]))
            else:
                table.append(token.replace(SPACE, " ").encode())
        return table

    @cached_property
    def _strips_first_space(self) -> bool:
        # Foreign models may add a space before every text and strip it when decoding.
        return self._processor.normalize("a").startswith(SPACE)

    def _token_bytes(self, token_id: int, first: bool) -> bytes | None:
        data = self._bytes[token_id] if 0 <= token_id < self.vocab_size else None
        return data.removeprefix(b" ") if data and first and self._strips_first_space else data

    def _optional(self, token_id: int) -> int | None:
        return token_id if 0 <= token_id < len(self._vocabulary) else None

    def _check_recorded_hash(self) -> None:
        config = read_json(self.directory / "tokenizer_config.json")
        recorded = config.get(SHA256_KEY) if isinstance(config, dict) else None
        if recorded not in (None, self.sha256):
            raise CheckpointError(
                f"{self.directory / 'tokenizer.model'} has sha256 {self.sha256}, but its tokenizer_config.json "
                f"records {recorded}: the file is damaged or belongs to another tokenizer. Copy the directory again"
            )


def byte_spans(text: str, lengths: Sequence[int]) -> np.ndarray:
    """Return the characters (N, 2) that N consecutive tokens of `lengths` bytes cover in the UTF-8 form of `text`."""
    sizes = [len(character.encode("utf-8", "replace")) for character in text]
    ends = np.cumsum(sizes, dtype=np.int64)
    stops = np.cumsum(lengths, dtype=np.int64)
    starts = stops - np.asarray(lengths, dtype=np.int64)
    return np.stack([np.searchsorted(ends, starts, side="right"), np.searchsorted(ends, stops, side="left") + 1], 1)


def _as_text(mark: str) -> tuple[str, ...]:
    return (SPACE, " ") if mark == SPACE else (mark,)


def _valid(text: str) -> str:
    """Return the text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
