"""Run any tokenizer.json (byte-level BPE, WordPiece, Unigram) behind the interface of Tokenizer."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.engine.errors import CheckpointError, DataError
from mini_llm.engine.run.files import open_regular
from mini_llm.tokenization.pipeline import NAMES, TokenizerSettings, complete
from mini_llm.tokenization.stream import StreamDecoder
from mini_llm.tokenization.unit_stream import LOCAL, CleanStream, UnitStream, WholeStream, clean_up

_LARGEST_JSON = 256 << 20  # bytes
# Usual spellings, for directories whose files do not name their special tokens.
_USUAL = {
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("<cls>", "[CLS]"),
    "sep": ("<sep>", "[SEP]"),
}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class FastTokenizer:
    """Wraps the `tokenizers` library around `directory`/tokenizer.json; Tokenizer documents the methods.

    Its ids, offsets and decoded text are those of AutoTokenizer. So the name of a special token in a text is that
    token, unless tokenizer_config.json says `split_special_tokens`.

    With `rows`, the number of rows of a model's embedding, added tokens beyond it are allowed (`remark` names them),
    but a text that contains one raises DataError, and a special token among them counts as missing.

    For a tokenizer with cls and sep tokens but no bos and eos tokens (BERT), bos_id and eos_id are the cls and sep ids,
    since these are what surrounds a text.
    """

    def __init__(self, content: bytes, directory: Path | str, rows: int | None = None):
        from tokenizers import Tokenizer as Backend

        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        self.content = content
        try:
            tree = json.loads(content)
            self._decoders = set(_types(tree.get("decoder")))
            backend = Backend.from_str(content.decode("utf-8"))
            self._algorithm = type(backend.model).__name__
            self._settings = TokenizerSettings(self.directory, self._algorithm, b'"ByteLevel"' in content)
            complete(backend, self._settings)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(
                f"{path}: the tokenizers library cannot read this file ({str(error)[:120]}). It is damaged "
                "or in another format: copy it again from its source"
            ) from None
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        changed = [repr(token) for token in added.values()] if len(added) != len(tree.get("added_tokens") or []) else []
        self.sha256 = hashlib.sha256(content + "".join(changed).encode()).hexdigest()
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._skipped = {i for i, token in added.items() if token.special}
        self._beyond: dict[int, str] = {}
        self.remark: str | None = None
        if rows is not None and self.vocab_size > rows:
            self._leave_out(rows, {i: token.content for i, token in added.items() if i >= rows})
        ids = {name: self._find(name) for name in NAMES}
        self.unk_id, self.pad_id, self.mask_id = ids["unk"], ids["pad"], ids["mask"]
        self.cls_id, self.sep_id = ids["cls"], ids["sep"]
        self.bos_id = ids["cls"] if ids["bos"] is None else ids["bos"]
        self.eos_id = ids["sep"] if ids["eos"] is None else ids["eos"]
        named = {i for i in ids.values() if i is not None}
        self.special_ids: frozenset[int] = frozenset(i for i in self._skipped | named if i < self.vocab_size)

    def _leave_out(self, rows: int, beyond: dict[int, str]) -> None:
        """Restrict the ids to `rows` embeddings. Raises CheckpointError unless all tokens beyond them were added."""
        if len(beyond) < self.vocab_size - rows:
            raise CheckpointError(
                f"{self.directory}: the tokenizer has {self.vocab_size} tokens, the model only {rows}: they do not "
                "match. Copy the tokenizer files of the training run into the model directory"
            )
        names = ", ".join(map(repr, list(beyond.values())[:3])) + (", ..." if len(beyond) > 3 else "")
        self.remark = (
            f"{self.directory}: the tokenizer has {len(beyond)} added tokens beyond the model's {rows} embeddings "
            f"({names}): the model neither reads nor generates them"
        )
        self._beyond, self.vocab_size = beyond, rows

    @classmethod
    def convert(cls, directory: Path | str, rows: int | None = None) -> "FastTokenizer":
        """Convert the older files of `directory` (vocab.txt, vocab.json with merges.txt, spiece.model, tokenizer.model)
        in memory to a tokenizer.json, as transformers does. Raises CheckpointError."""
        directory = Path(directory)
        try:
            from transformers import AutoTokenizer

            # Pass an absolute path: transformers would look a name up on the Hub.
            converted: Any = AutoTokenizer.from_pretrained(directory.resolve(), local_files_only=True)
            backend = converted.backend_tokenizer
        except Exception as error:  # a damaged file can raise anything in the library, which may also be missing
            cause = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{directory}: no tokenizer.json, and the other files cannot be converted to one ({cause}). "
                "Write it on a machine where this tokenizer loads: "
                'python -c "from transformers import AutoTokenizer; '
                f"AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')\""
            ) from None
        return cls(backend.to_str().encode(), directory, rows)

    @classmethod
    def load(cls, directory: Path | str, rows: int | None = None) -> "FastTokenizer":
        """Read `directory`/tokenizer.json. Raises CheckpointError."""
        path = Path(directory) / "tokenizer.json"
        try:
            size = path.stat().st_size
            if size > _LARGEST_JSON:
                raise CheckpointError(f"{path}: {size / 1e6:.0f} MB is too large for a tokenizer; name the right file")
            with open_regular(path) as file:
                return cls(file.read(), directory, rows)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the tokenizer ({error.strerror or error})") from None

    @property
    def kind(self) -> str:
        """The algorithm, for display: "byte-level BPE", "WordPiece" or "Unigram"."""
        return "byte-level BPE" if self._algorithm == "BPE" and "ByteLevel" in self._decoders else self._algorithm

    @cached_property
    def pipeline(self) -> dict[str, Any]:
        """The content of tokenizer.json, with what the other files of the directory change in it."""
        return json.loads(self._backend.to_str())

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that the template of the tokenizer adds before and after a text, as AutoTokenizer does.

        Raises CheckpointError if the model has no embedding for one of them.
        """
        before, after = self._probe(("a",), ("0",), (".",))
        return before, after

    @cached_property
    def pair_frame(self) -> tuple[list[int], list[int], list[int]]:
        """The ids that the template adds before, between and after two texts. Raises CheckpointError, as `frame`."""
        before, between, after = self._probe(("a", "a"), ("0", "0"), (".", "."))
        return before, between, after

    def _probe(self, *probes: tuple[str, ...]) -> list[list[int]]:
        """Return the ids before, between and after the texts of the first probe that has tokens in each."""
        for texts in probes:
            encoding = self._backend.encode(texts[0], texts[1] if len(texts) > 1 else None)
            places = [[i for i, owner in enumerate(encoding.sequence_ids) if owner == n] for n in range(len(texts))]
            if all(places):
                break
        else:
            raise CheckpointError(f"{self.directory}: the tokenizer drops every letter, so nothing can be read with it")
        starts = [0, *(place[-1] + 1 for place in places)]
        ends = [*(place[0] for place in places), len(encoding.ids)]
        found = [encoding.ids[start:end] for start, end in zip(starts, ends, strict=True)]
        if beyond := [self._beyond[i] for ids in found for i in ids if i in self._beyond]:
            raise CheckpointError(
                f"{self.directory}: the tokenizer puts {beyond[0]!r} around every text, but the model has no embedding "
                "for it. Copy the tokenizer files of the training run into the model directory"
            )
        return found

    @property
    def document_frame(self) -> tuple[list[int], list[int]]:
        """The ids around a document in a token store: the frame of a text, and the eos token at its end."""
        before, after = self.frame
        ends = self.eos_id is None or (after and after[-1] == self.eos_id)
        return before, after if ends else [*after, self.eos_id]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without the frame. Raises DataError for a token that the model does not have."""
        return self._encode([text])[0].ids

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """Return the ids of each text (int32). The library ignores `threads` and uses all cores, or one with
        TOKENIZERS_PARALLELISM=false."""
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._encode(list(texts))]

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (ids, spans) of each text: ids as `encode_batch`, spans (tokens, 2) the characters from and to."""
        return [
            (np.array(encoding.ids, dtype=np.int32), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
            for encoding in self._encode(list(texts))
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, skipping special and unknown ids."""
        text = self._backend.decode([i for i in map(int, ids) if i >= 0], skip_special_tokens=True)
        return clean_up(text) if self._cleans_up else text

    def stream(self) -> Any:
        """Return a decoder for ids that arrive one at a time; see StreamDecoder."""
        if self._decoders == {"ByteLevel"}:
            stream: Any = StreamDecoder(self._token_bytes)
        elif self._decoders <= LOCAL and self._anchor is not None:
            stream = UnitStream(self._unit_text, self._is_byte_unit)
        else:
            return WholeStream(self.decode)
        return CleanStream(stream) if self._cleans_up else stream

    @property
    def _cleans_up(self) -> bool:
        forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
        return self._settings.flag("clean_up_tokenization_spaces") and (
            self._algorithm != "BPE" or self._settings.flag(forced)
        )

    def plain(self) -> "FastTokenizer":
        """Return the same tokenizer reading the names of special tokens in a text as plain characters."""
        other = copy(self)
        other._backend = type(self._backend).from_str(json.dumps(self.pipeline))
        other._backend.encode_special_tokens = True
        return other

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of `text` as spelled in the vocabulary."""
        return self._encode([text])[0].tokens

    def id_to_token(self, token_id: int) -> str:
        """Return the token with this id. Raises IndexError."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise IndexError(token_id)
        return token

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the UTF-8 bytes that a token adds inside a text, None for special ids and ids without text."""
        if self._decoders == {"ByteLevel"}:
            return self._token_bytes(token_id, False)
        if self._is_byte_unit(token_id):
            return bytes.fromhex(self.id_to_token(token_id)[3:5])
        return None if self._token(token_id) is None else self._unit_text((token_id,), False).encode()

    def is_byte(self, token_id: int) -> bool:
        """Return whether this id is a byte token, which spells one byte of a character without a token."""
        return "ByteFallback" in self._decoders and bool(_BYTE_TOKEN.fullmatch(self.id_to_token(token_id)))

    def _encode(self, texts: list[str]) -> list[Any]:
        try:
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        except TypeError:
            # Lone surrogates (from JSON) have no UTF-8 encoding.
            valid = [t.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for t in texts]
            encodings = self._backend.encode_batch(valid, add_special_tokens=False)
        if self._beyond:
            for encoding, text in zip(encodings, texts, strict=True):
                if beyond := self._beyond.keys() & encoding.ids:
                    raise DataError(
                        f"the text {text[:60]!r} contains the token {self._beyond[min(beyond)]!r} (id {min(beyond)}), "
                        f"but the model has only {self.vocab_size} embeddings: remove it from the text"
                    )
        return encodings

    def _find(self, name: str) -> int | None:
        """Return the id of a special token, named in the directory's files or found by its usual spelling."""
        named = self._settings.specials.get(name)
        spellings = (named,) if named is not None else () if name in self._settings.mentioned else _USUAL[name]
        found_ids = (self._backend.token_to_id(token) for token in spellings)
        return next((i for i in found_ids if i is not None and i < self.vocab_size), None)

    @cached_property
    def _known_units(self) -> dict[tuple[int, bool], Any]:
        return {}

    def _token_bytes(self, token_id: int, first: bool) -> bytes | None:
        """Return the bytes of a token of a byte-level BPE."""
        key = (token_id, first)
        if key not in self._known_units:
            token = self._token(token_id)
            known = _byte_of_character()
            spelled = token is not None and all(character in known for character in token)
            data = None if token is None else bytes(map(known.__getitem__, token)) if spelled else token.encode()
            self._known_units[key] = data
        return self._known_units[key]

    def _is_byte_unit(self, token_id: int) -> bool | None:
        token = self._token(token_id)
        return None if token is None else "ByteFallback" in self._decoders and bool(_BYTE_TOKEN.fullmatch(token))

    def _unit_text(self, unit: tuple[int, ...], first: bool) -> str:
        key = (unit[0], first)
        if len(unit) > 1 or key not in self._known_units:
            # Let the library join the unit to a preceding word: it adds a space, adds nothing, or strips '##'.
            before = [] if first or self._anchor is None else [self._anchor]
            text = self._backend.decode([*before, *unit])[len(self._backend.decode(before)) :]
            if len(unit) > 1:
                return text
            self._known_units[key] = text
        return self._known_units[key]

    def _token(self, token_id: int) -> str | None:
        """Return a token that has a text, or None."""
        return None if token_id < 0 or token_id in self._skipped else self._backend.id_to_token(token_id)

    @cached_property
    def _anchor(self) -> int | None:
        """The id of an ordinary word, used to see how the library joins the token after it."""
        words = (i for i in range(self.vocab_size) if i not in self.special_ids)
        return next((i for i in words if re.fullmatch(r"[A-Za-z]+", self._backend.decode([i]))), None)


def _types(decoder: Any) -> list[str]:
    """Return the types of a decoder and of all decoders inside it."""
    if not isinstance(decoder, dict):
        return []
    return [str(decoder.get("type"))] + [name for inner in decoder.get("decoders") or [] for name in _types(inner)]


@cache
def _byte_of_character() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 stands for its own byte, U+0100 and up for the other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
