"""Run any tokenizer.json (byte-level BPE, WordPiece, Unigram) behind the interface of Tokenizer."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import read_json
from mini_llm.tokenization.stream import StreamDecoder, decode

_LARGEST_JSON = 256 << 20  # bytes
_NAMES = ("unk", "bos", "eos", "pad", "mask", "cls", "sep")
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

    For a tokenizer with cls and sep tokens but no bos and eos tokens (BERT), bos_id and eos_id are the cls and sep ids,
    since these are what surrounds a text.
    """

    def __init__(self, content: bytes, directory: Path | str):
        from tokenizers import Tokenizer as Backend

        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            tree = json.loads(content)
            backend = Backend.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(
                f"{path}: the tokenizers library cannot read this file ({str(error)[:120]}). It is damaged "
                "or in another format: copy it again from its source"
            ) from None
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # read special tokens in a text as plain characters
        self._backend = backend
        added = [token for token in tree.get("added_tokens") or [] if isinstance(token, dict)]
        self._plain_added = {token["id"]: token["content"] for token in added if not token.get("special")}
        self._decoders = set(_types(tree.get("decoder")))
        self._algorithm = str(tree["model"].get("type") or type(backend.model).__name__)
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        ids = {name: self._find(name) for name in _NAMES}
        self.unk_id, self.pad_id, self.mask_id = ids["unk"], ids["pad"], ids["mask"]
        self.cls_id, self.sep_id = ids["cls"], ids["sep"]
        self.bos_id = ids["cls"] if ids["bos"] is None else ids["bos"]
        self.eos_id = ids["sep"] if ids["eos"] is None else ids["eos"]
        self.special_ids: frozenset[int] = frozenset(
            {token["id"] for token in added if token.get("special")} | {i for i in ids.values() if i is not None}
        )

    @classmethod
    def convert(cls, directory: Path | str) -> "FastTokenizer":
        """Convert the older files of `directory` (vocab.txt, vocab.json with merges.txt, spiece.model) in memory to
        a tokenizer.json, as transformers does. Raises CheckpointError."""
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
        return cls(backend.to_str().encode(), directory)

    @classmethod
    def load(cls, directory: Path | str) -> "FastTokenizer":
        """Read `directory`/tokenizer.json. Raises CheckpointError."""
        path = Path(directory) / "tokenizer.json"
        try:
            size = path.stat().st_size
            if size > _LARGEST_JSON:
                raise CheckpointError(f"{path}: {size / 1e6:.0f} MB is too large for a tokenizer; name the right file")
            return cls(path.read_bytes(), directory)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the tokenizer ({error.strerror or error})") from None

    @property
    def kind(self) -> str:
        """The algorithm, for display: "byte-level BPE", "WordPiece" or "Unigram"."""
        return "byte-level BPE" if self._algorithm == "BPE" and "ByteLevel" in self._decoders else self._algorithm

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that the template of tokenizer.json adds before and after a text, as AutoTokenizer does."""
        probe = self._backend.encode("a")
        inside = [place for place, added in enumerate(probe.special_tokens_mask) if not added]
        if not inside:
            return probe.ids, []
        return probe.ids[: inside[0]], probe.ids[inside[-1] + 1 :]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` without special tokens."""
        return self._encode([text])[0].ids

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """Return the ids of each text (int32). The library ignores `threads` and uses all cores, or one with
        TOKENIZERS_PARALLELISM=false."""
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, skipping special and unknown ids."""
        return decode(ids, self._token_bytes)

    def stream(self) -> StreamDecoder:
        """Return a decoder for ids that arrive one at a time."""
        return StreamDecoder(self._token_bytes)

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of `text` as spelled in the vocabulary."""
        return self._encode([text])[0].tokens

    def id_to_token(self, token_id: int) -> str:
        """Return the token with this id. Raises IndexError."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise IndexError(token_id)
        return token

    def is_byte(self, token_id: int) -> bool:
        """Return whether this id is a byte token, which spells one byte of a character without a token."""
        return "ByteFallback" in self._decoders and bool(_BYTE_TOKEN.fullmatch(self.id_to_token(token_id)))

    def _encode(self, texts: list[str]) -> list[Any]:
        try:
            return self._backend.encode_batch(texts, add_special_tokens=False)
        except TypeError:
            # Lone surrogates (from JSON) have no UTF-8 encoding.
            valid = [t.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for t in texts]
            return self._backend.encode_batch(valid, add_special_tokens=False)

    def _find(self, name: str) -> int | None:
        """Return the id of a special token, named in the directory's files or found by its usual spelling."""
        configured = False
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            config = read_json(self.directory / file)
            if not isinstance(config, dict) or f"{name}_token" not in config:
                continue
            configured = True
            token = config[f"{name}_token"]
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and (found := self._backend.token_to_id(token)) is not None:
                return found
        if configured:
            return None
        found_ids = (self._backend.token_to_id(token) for token in _USUAL[name])
        return next((found for found in found_ids if found is not None), None)

    @cached_property
    def _known_bytes(self) -> dict[tuple[int, bool], bytes | None]:
        return {}

    def _token_bytes(self, token_id: int, first: bool) -> bytes | None:
        key = (token_id, first)
        if key not in self._known_bytes:
            self._known_bytes[key] = self._find_bytes(token_id, first)
        return self._known_bytes[key]

    def _find_bytes(self, token_id: int, first: bool) -> bytes | None:
        token = self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None or token_id in self.special_ids:
            return None
        if token_id in self._plain_added:
            return self._plain_added[token_id].encode()
        if "ByteLevel" in self._decoders:
            known = _byte_of_character()
            if all(character in known for character in token):
                return bytes(known[character] for character in token)
            return token.encode()
        if "ByteFallback" in self._decoders and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        if first:
            return self._backend.decode([token_id]).encode()
        # Let the library join the token to a preceding word: it adds a space, adds nothing, or strips '##'.
        before = self._backend.decode([self._anchor])
        return self._backend.decode([self._anchor, token_id]).removeprefix(before).encode()

    @cached_property
    def _anchor(self) -> int:
        """The id of an ordinary word, used to see how the library joins the token after it."""
        candidates = (i for i in range(self.vocab_size) if i not in self.special_ids and i not in self._plain_added)
        words = (i for i in candidates if re.fullmatch(r"[A-Za-z]+", self._backend.decode([i])))
        return next(words, 0)


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
