"""Tiny tokenizers built the way other model families build theirs."""

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.load import load_tokenizer

GOOD, BAD = "what a warm and clever little film", "dull, slow: nobody should sit through this"
ROWS = [(f"{GOOD if i % 2 else BAD} {'really ' * (i % 7)}{i}", "good" if i % 2 else "bad") for i in range(60)]
TEXTS = [
    GOOD,
    "Dull.",
    "What a FILM! It isn't slow at all;  two  spaces, caf\u00e9 \u6f22\u5b57 \U0001f600\n\tand a second line. " * 2,
    " nobody ",
    "x" * 30,
]
INPUTS = ["input_ids", "attention_mask"]
# How Qwen and Llama 3 split a text into words, except for the number of digits per token.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def template(backend: Backend, single: str) -> processors.TemplateProcessing:
    names = [part for part in single.split() if part != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=[(n, backend.token_to_id(n)) for n in names])


def byte_level(*specials: str, words: bool = False) -> Backend:
    """Byte-level BPE that splits words like GPT-2 or, with `words`, like Qwen and Llama 3."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words:
        split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([text for text, _ in ROWS] + TEXTS, trainer)
    return backend


def gpt2() -> tuple[Backend, dict]:
    return byte_level("<|endoftext|>"), {"tokenizer_class": "GPT2Tokenizer"}


def qwen3() -> tuple[Backend, dict]:
    backend = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", words=True)
    backend.normalizer = normalizers.NFC()
    named = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    return backend, {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, **named}


def llama() -> tuple[Backend, dict]:
    backend = byte_level("<|begin_of_text|>", "<|end_of_text|>", words=True)
    parts = [processors.ByteLevel(trim_offsets=False), template(backend, "<|begin_of_text|> $A")]
    backend.post_processor = processors.Sequence(parts)
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": INPUTS, **named}


def bert() -> tuple[Backend, dict]:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    backend.train_from_iterator([text for text, _ in ROWS], trainer)
    backend.post_processor = template(backend, "[CLS] $A [SEP]")
    return backend, {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


def modernbert() -> tuple[Backend, dict]:
    backend = byte_level("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    backend.post_processor = template(backend, "[CLS] $A [SEP]")
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    return backend, {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": INPUTS, **named}


def t5() -> tuple[Backend, dict]:
    backend = Backend(models.Unigram())
    mark = {"replacement": "\u2581", "prepend_scheme": "always"}
    words = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**mark)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    backend.decoder = decoders.Metaspace(**mark)
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([text for text, _ in ROWS], trainer)
    backend.add_special_tokens([f"<extra_id_{i}>" for i in range(100)])
    backend.post_processor = template(backend, "$A </s>")
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return backend, {"tokenizer_class": "T5Tokenizer", **named}


TOKENIZERS: dict[str, Callable[[], tuple[Backend, dict]]] = {
    "gpt2": gpt2,
    "bert": bert,
    "llama": llama,
    "qwen3": qwen3,
    "modernbert": modernbert,
    "t5": t5,
}
KINDS = {"bert": "WordPiece", "t5": "Unigram"}
CAUSAL = {"gpt2", "llama", "qwen3"}


def write_tokenizer(family: str, directory: Path) -> FastTokenizer:
    backend, config = TOKENIZERS[family]()
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": family}))
    return load_tokenizer(directory)
