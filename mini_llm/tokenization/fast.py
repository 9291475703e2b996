"""A tokenizer.json of others (byte-level BPE, WordPiece, Unigram) behind the interface of Tokenizer."""

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
# For directories that do not say which token is which.
_USUAL = {
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>"),
    "eos": ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>"),
    "pad": ("<pad>", "[PAD]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("<cls>", "[CLS]"),
    "sep": ("<sep>", "[SEP]"),
}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class FastTokenizer:
    """The `tokenizers` library over `directory`/tokenizer.json; see Tokenizer for what each method promises.

    A tokenizer without beginning and end symbols but with class and separator symbols (BERT's kind) gives those as
    bos_id and eos_id: they are what stands around a text there.
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
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"{path}: not a tokenizer of the tokenizers library, or a damaged one ({str(error)[:120]}). "
                "Copy it again from where it came"
            ) from None
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # special tokens in a text are plain characters
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
            {token["id"] for token in added if token.get("special")} | set(ids.values()) - {None}
        )

    @classmethod
    def convert(cls, directory: Path | str) -> "FastTokenizer":
        """Make tokenizer.json of the older files of `directory` (vocab.txt, vocab.json and merges.txt, spiece.model),
        as transformers does, without writing it. Raises CheckpointError."""
        directory = Path(directory)
        try:
            from transformers import AutoTokenizer

            # A directory and nothing else: a name would be looked up on the network.
            backend = AutoTokenizer.from_pretrained(directory.resolve(), local_files_only=True).backend_tokenizer
        except Exception as error:  # whatever a damaged file provokes in the library, or the library's absence
            cause = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{directory}: no tokenizer.json there, and none can be made of the other files ({cause}). "
                "Write it where the tokenizer loads: "
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
                raise CheckpointError(f"{path}: {size / 1e6:.0f} MB is too large for a tokenizer; is it another file?")
            return cls(path.read_bytes(), directory)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the tokenizer ({error.strerror or error})") from None

    @property
    def kind(self) -> str:
        """What it is, in words: "byte-level BPE", "WordPiece", "Unigram"."""
        return "byte-level BPE" if self._algorithm == "BPE" and "ByteLevel" in self._decoders else self._algorithm

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """Ids that the template of tokenizer.json puts before and after a text: what AutoTokenizer adds."""
        probe = self._backend.encode("a")
        inside = [place for place, added in enumerate(probe.special_tokens_mask) if not added]
        if not inside:
            return probe.ids, []
        return probe.ids[: inside[0]], probe.ids[inside[-1] + 1 :]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added."""
        return self._encode([text])[0].ids

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[np.ndarray]:
        """Ids of each text (int32). The library takes all cores (TOKENIZERS_PARALLELISM=false: one), not `threads`."""
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._encode(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special and unknown ids give nothing."""
        return decode(ids, self._piece_bytes)

    def stream(self) -> StreamDecoder:
        """A decoder for ids that come one by one."""
        return StreamDecoder(self._piece_bytes)

    def pieces(self, text: str) -> list[str]:
        """The tokens of `text` as they stand in the vocabulary."""
        return self._encode([text])[0].tokens

    def piece(self, token_id: int) -> str:
        """The token with this id. Raises IndexError."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise IndexError(token_id)
        return token

    def is_byte(self, token_id: int) -> bool:
        """Whether this id stands for one byte of a character that has no piece."""
        return "ByteFallback" in self._decoders and bool(_BYTE_PIECE.fullmatch(self.piece(token_id)))

    def _encode(self, texts: list[str]) -> list[Any]:
        try:
            return self._backend.encode_batch(texts, add_special_tokens=False)
        except TypeError:
            # Lone surrogates (from JSON) have no UTF-8 form.
            valid = [t.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for t in texts]
            return self._backend.encode_batch(valid, add_special_tokens=False)

    def _find(self, name: str) -> int | None:
        """Id of a special token: as the directory's files say, else by its usual spelling."""
        said = False
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            config = read_json(self.directory / file)
            if not isinstance(config, dict) or f"{name}_token" not in config:
                continue
            said = True
            token = config[f"{name}_token"]
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and (found := self._backend.token_to_id(token)) is not None:
                return found
        if said:
            return None
        found_ids = (self._backend.token_to_id(token) for token in _USUAL[name])
        return next((found for found in found_ids if found is not None), None)

    @cached_property
    def _known_bytes(self) -> dict[tuple[int, bool], bytes | None]:
        return {}

    def _piece_bytes(self, token_id: int, first: bool) -> bytes | None:
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
        if "ByteFallback" in self._decoders and (match := _BYTE_PIECE.fullmatch(token)):
            return bytes.fromhex(match[1])
        if first:
            return self._backend.decode([token_id]).encode()
        # How the library joins a token to a word before it: a space, nothing, '##' taken off.
        before = self._backend.decode([self._anchor])
        return self._backend.decode([self._anchor, token_id]).removeprefix(before).encode()

    @cached_property
    def _anchor(self) -> int:
        """An ordinary word, to see how the library writes what follows it."""
        candidates = (i for i in range(self.vocab_size) if i not in self.special_ids and i not in self._plain_added)
        words = (i for i in candidates if re.fullmatch(r"[A-Za-z]+", self._backend.decode([i])))
        return next(words, 0)


def _types(decoder: Any) -> list[str]:
    """The type of a decoder and of all inside it."""
    if not isinstance(decoder, dict):
        return []
    return [str(decoder.get("type"))] + [name for inner in decoder.get("decoders") or [] for name in _types(inner)]


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, every other byte for a character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
