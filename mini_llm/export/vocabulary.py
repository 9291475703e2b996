"""Convert the tokenizer of a model directory to llama.cpp's vocabulary (src/llama-vocab.cpp)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, Keys, TokenType

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import read_json
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.framing import text_frame
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model")
NAMED_IDS = {
    "bos_id": Keys.Tokenizer.BOS_ID,
    "eos_id": Keys.Tokenizer.EOS_ID,
    "unk_id": Keys.Tokenizer.UNK_ID,
    "sep_id": Keys.Tokenizer.SEP_ID,
    "pad_id": Keys.Tokenizer.PAD_ID,
    "mask_id": Keys.Tokenizer.MASK_ID,
}
# ByteLevel's own pattern.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Patterns that split a text for a byte-level BPE, one after the other -> llama.cpp's name for them.
PRE_TOKENIZERS = {
    (GPT2,): "gpt-2",
    (r"\p{N}", GPT2): "smollm",
    (_WORDS.replace("DIGITS", r"\p{N}{1,3}"),): "llama-bpe",
    (_WORDS.replace("DIGITS", r"\p{N}"),): "qwen2",
}
_NO_SCORE = -10_000.0  # score of tokens that no text encodes to


@dataclass
class Vocabulary:
    """The tokenizer.ggml.* fields of a GGUF file. Each list has one entry per row of the embedding."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def of_type(self, *kinds: TokenType) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in kinds]

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        for key, value in self.settings.items():
            if key == Keys.Tokenizer.PRECOMPILED_CHARSMAP:
                writer.add_precompiled_charsmap(value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            else:
                writer.add_string(key, value)


def vocabulary_of(fields: dict[str, Any]) -> Vocabulary:
    """Return the vocabulary of a GGUF file with these fields. Raises CheckpointError if it has none."""
    keys = (Keys.Tokenizer.MODEL, Keys.Tokenizer.PRE, Keys.Tokenizer.LIST, Keys.Tokenizer.TOKEN_TYPE)
    if missing := [key for key in keys if key not in fields]:
        raise CheckpointError(f"the GGUF file lacks {', '.join(missing)}, so it has no vocabulary. Export it again")
    lists = (fields.get(key) for key in (Keys.Tokenizer.SCORES, Keys.Tokenizer.MERGES))
    return Vocabulary(*(fields[key] for key in keys), *lists, {k: v for k, v in fields.items() if k not in keys})


def read_vocabulary(directory: Path, rows: int, head: str) -> Vocabulary:
    """Convert the tokenizer of `directory` for an embedding of `rows` rows in a model with head "causal" or "seq2seq".

    Added tokens beyond the rows are left out. Raises CheckpointError if llama.cpp would give other ids, or if there are
    more tokens than rows.
    """
    tokenizer = load_tokenizer(directory, rows)
    if isinstance(tokenizer, FastTokenizer) and tokenizer.kind == "byte-level BPE":
        vocabulary = _byte_level(tokenizer)
    else:
        vocabulary = _sentencepiece(directory, tokenizer)
    for i in range(len(vocabulary.tokens), rows):
        vocabulary.tokens.append(f"[PAD{i}]")
        vocabulary.types.append(TokenType.UNUSED)
        if vocabulary.scores is not None:
            vocabulary.scores.append(_NO_SCORE)
    if len(set(vocabulary.tokens)) < rows:
        raise CheckpointError(f"{directory}: two tokens have the same text, which llama.cpp does not support")
    ids = {key: getattr(tokenizer, name) for name, key in NAMED_IDS.items()}
    add_bos, add_eos = _added(tokenizer, head)
    vocabulary.settings |= {key: value for key, value in ids.items() if value is not None}
    vocabulary.settings |= {Keys.Tokenizer.ADD_BOS: add_bos, Keys.Tokenizer.ADD_EOS: add_eos}
    if template := _chat_template(directory):
        vocabulary.settings[Keys.Tokenizer.CHAT_TEMPLATE] = template
    return vocabulary


def _added(tokenizer: Tokenizer | FastTokenizer, head: str) -> tuple[bool, bool]:
    """Return whether the bos token comes before a text and whether the eos token comes after it.

    Raises CheckpointError if anything else does.
    """
    before, after = text_frame(tokenizer, "seq2seq" if head == "seq2seq" else "causal")
    if before not in ([], [tokenizer.bos_id]) or after not in ([], [tokenizer.eos_id]):
        names = " ".join(map(tokenizer.id_to_token, [*before, *after]))
        raise CheckpointError(
            f"{tokenizer.directory}: the template of the tokenizer puts {names} around a text, but llama.cpp only adds "
            "a bos token before and an eos token after it"
        )
    return bool(before), bool(after)


def _sentencepiece(directory: Path, tokenizer: Tokenizer | FastTokenizer) -> Vocabulary:
    """Return tokens, scores and types of the SentencePiece model plus the tokens that tokenizer.json adds."""
    from sentencepiece import sentencepiece_model_pb2

    path = next((directory / name for name in SENTENCEPIECE_FILES if (directory / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{directory}: a {tokenizer.kind} tokenizer without its SentencePiece model, which llama.cpp's vocabulary "
            f"needs. Copy {' or '.join(SENTENCEPIECE_FILES)} there from the source of the model"
        )
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())  # ty: ignore[missing-attribute]
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise CheckpointError(f"{path}: not a SentencePiece model, or damaged ({str(error)[:120]})") from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    unigram = trainer.model_type == trainer.UNIGRAM
    problems = {
        "it is neither BPE nor Unigram": trainer.model_type not in (trainer.BPE, trainer.UNIGRAM),
        "it has no byte_fallback": not unigram and not trainer.byte_fallback,
        "it normalizes text": not unigram and bool(normalizer.precompiled_charsmap),
        "it removes spaces (remove_extra_whitespaces)": not unigram and normalizer.remove_extra_whitespaces,
        "it puts spaces after words (treat_whitespace_as_suffix)": trainer.treat_whitespace_as_suffix,
    }
    if found := [problem for problem, present in problems.items() if present]:
        raise CheckpointError(f"{path}: llama.cpp would split text into other tokens: {', '.join(found)}")
    # SentencePiece and llama.cpp use the same types: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    tokens, types, scores = ([getattr(p, name) for p in proto.pieces] for name in ("piece", "type", "score"))
    for i in range(len(tokens), tokenizer.vocab_size):
        tokens.append(tokenizer.id_to_token(i))
        types.append(TokenType.CONTROL if i in tokenizer.special_ids else TokenType.USER_DEFINED)
        scores.append(_NO_SCORE)
    settings: dict[str, Any] = {Keys.Tokenizer.ADD_PREFIX: normalizer.add_dummy_prefix}
    if unigram:
        settings[Keys.Tokenizer.REMOVE_EXTRA_WS] = normalizer.remove_extra_whitespaces
        if normalizer.precompiled_charsmap:
            settings[Keys.Tokenizer.PRECOMPILED_CHARSMAP] = normalizer.precompiled_charsmap
    return Vocabulary("t5" if unigram else "llama", "default", tokens, types, scores, None, settings)


def _byte_level(tokenizer: FastTokenizer) -> Vocabulary:
    tree = tokenizer.pipeline
    model, added = tree["model"], {token["id"]: token for token in tree.get("added_tokens") or []}
    names = {i: token for token, i in model["vocab"].items()} | {i: token["content"] for i, token in added.items()}
    tokens, types = [], []
    for i in range(tokenizer.vocab_size):
        tokens.append(names.get(i, f"[PAD{i}]"))
        if i in added:
            types.append(TokenType.CONTROL if i in tokenizer.special_ids else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL if i in names else TokenType.UNUSED)
    # Older files store a merge as "a b" instead of ["a", "b"].
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary("gpt2", pre_tokenizer(tree, tokenizer.directory), tokens, types, None, merges)


def pre_tokenizer(tree: dict[str, Any], directory: Path) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a tokenizer.json. Raises CheckpointError if it has none."""
    stage = tree.get("pre_tokenizer") or {}
    *splits, last = stage.get("pretokenizers") or [stage]
    patterns = [_pattern(split) for split in splits]
    regular = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if last.get("use_regex", True):
        patterns.append(GPT2)
    name = PRE_TOKENIZERS.get(tuple(patterns)) if regular else None
    # llama.cpp looks up whole words only for llama-bpe and never normalizes; its converter still accepts Qwen's NFC.
    whole = bool(tree["model"].get("ignore_merges")) is (name == "llama-bpe")
    normalizer = (tree.get("normalizer") or {}).get("type")
    if name is None or not whole or normalizer not in (None, "NFC" if name == "qwen2" else None):
        raise CheckpointError(
            f"{directory / 'tokenizer.json'}: llama.cpp does not support its pre-tokenizer or normalizer (supported: "
            f"{', '.join(PRE_TOKENIZERS.values())}) and would give other tokens. "
            "Use a SentencePiece tokenizer (python -m tokenizer), which has no pre-tokenizer"
        )
    return name


def _pattern(split: dict[str, Any]) -> str | None:
    """Return the pattern whose matches a stage of a pre-tokenizer isolates, None if it does something else."""
    if split.get("type") == "Digits" and split.get("individual_digits"):
        return r"\p{N}"
    isolates = split.get("type") == "Split" and split.get("behavior") == "Isolated" and not split.get("invert")
    return split.get("pattern", {}).get("Regex") if isolates else None


def _chat_template(directory: Path) -> str | None:
    file = directory / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else _config(directory).get("chat_template")
    return template if isinstance(template, str) else None


def _config(directory: Path) -> dict[str, Any]:
    config = read_json(directory / "tokenizer_config.json")
    return config if isinstance(config, dict) else {}
