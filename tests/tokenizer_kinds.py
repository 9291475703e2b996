"""Tiny tokenizers of every kind that other projects save, beyond the six families of foreign_tokenizers.py."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.foreign_tokenizers import ROWS, TEXTS, TOKENIZERS, byte_level, template

GENERIC = "PreTrainedTokenizerFast"
Made = tuple[Backend, dict[str, Any], str]  # pipeline, tokenizer_config.json, model type
FLAGS = [
    AddedToken("<l>", lstrip=True, normalized=False),
    AddedToken("<r>", rstrip=True, normalized=False),
    AddedToken("film", single_word=True, normalized=True),
    AddedToken("\u00e9t\u00e9", normalized=True),
    AddedToken("<SP>", special=True, lstrip=True, rstrip=True, normalized=False),
    AddedToken("Caf\u00c9", normalized=True),
]
FRAGMENTS = [
    *(" ", "  ", "   ", "\n", "\t", "\u3000", "a", "film", "Film", "FILM", "what", "really", "dull", "12", "7", " 3"),
    *("isn't", "'s", " ' ", " .", " ,", " ?", " n't", ".", "\u00e9", "e\u0301", "\u00c9t\u00e9", "caf\u00e9"),
    *("Caf\u00c9", "\u6f22\u5b57", "\U0001f600", "\u200d", "\ufb01", "\u0130", "\x00", "\ufffd", "\u2581", "<0x0A>"),
    *("<l>", "<r>", " <SP> ", "<SP>", "<x>", "<y>", "<pad>", "<s>", "</s>", "<unk>", "<mask>", "<extra_id_0>"),
    *("[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "|||IP|||", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
]


def fuzz(count: int = 60) -> list[str]:
    rng = random.Random(0)
    return [*TEXTS, "", " ", "  a", *("".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 14))) for _ in range(count))]


def added(content: str, **flags: bool) -> dict[str, Any]:
    """An entry of added_tokens_decoder."""
    return {"content": content, **dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False), **flags}


def family(name: str, **config: Any) -> Callable[[], Made]:
    def make() -> Made:
        backend, known = TOKENIZERS[name]()
        return backend, {**known, **config}, name

    return make


def flagged(name: str) -> Callable[[], Made]:
    def make() -> Made:
        backend, config = TOKENIZERS[name]()
        backend.add_tokens(FLAGS)
        return backend, config, name

    return make


def prefix_space(**config: Any) -> Callable[[], Made]:
    def make() -> Made:
        backend, known = TOKENIZERS["gpt2"]()
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return backend, {**known, **config}, "gpt2"

    return make


def smollm2() -> Made:
    """Splits digits, and has neither a template nor a word on the bos token that its configuration names."""
    backend = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tree = json.loads(backend.to_str()) | {"post_processor": None}
    named = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return Backend.from_str(json.dumps(tree)), {"tokenizer_class": "GPT2Tokenizer", **named}, "llama"


def llama2(cls: str, legacy: bool, gemma: bool = False) -> Callable[[], Made]:
    """BPE over U+2581 with byte fallback, as SentencePiece trains it."""

    def make() -> Made:
        backend = Backend(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        specials = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
        backend.train_from_iterator([text for text, _ in ROWS], trainer)
        tree = json.loads(backend.to_str())
        tree["model"] |= {"byte_fallback": True, "fuse_unk": True}
        tree["added_tokens"] = tree["added_tokens"][:3]
        backend = Backend.from_str(json.dumps(tree))
        steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        if gemma:
            backend.normalizer = normalizers.Replace(" ", "\u2581")
            backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            steps.append(decoders.Strip(" ", 1, 0))
        backend.decoder = decoders.Sequence(steps)
        backend.post_processor = template(backend, "<s> $A")
        named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": legacy}
        return backend, {"tokenizer_class": cls, **named}, "llama"

    return make


def modernbert() -> Made:
    backend, config = TOKENIZERS["modernbert"]()
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken("|||IP|||", normalized=True), AddedToken("   ", normalized=True)])
    backend.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True, normalized=False)])
    return backend, {**config, "clean_up_tokenization_spaces": True}, "modernbert"


def roberta() -> Made:
    backend = byte_level("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    ends = [(name, backend.token_to_id(name)) for name in ("</s>", "<s>")]
    backend.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    named = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    mask = {"__type": "AddedToken", **added("<mask>", lstrip=True)}
    return backend, {"tokenizer_class": GENERIC, **named, "unk_token": "<unk>", "mask_token": mask}, "bert"


def t5_normalized() -> Made:
    backend, config = TOKENIZERS["t5"]()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    return backend, {**config, "tokenizer_class": GENERIC, "clean_up_tokenization_spaces": True}, "t5"


def words() -> Made:
    """Whole words without a decoder, which the library joins with spaces."""
    backend = Backend(models.WordLevel(unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]", "[BOS]", "[EOS]"], show_progress=False)
    backend.train_from_iterator([text for text, _ in ROWS] + TEXTS, trainer)
    backend.post_processor = template(backend, "[BOS] $A [EOS]")
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "bos", "eos")}
    return backend, {"tokenizer_class": GENERIC, "clean_up_tokenization_spaces": True, **named}, "gpt2"


def unigram_bytes() -> Made:
    pieces = [("\u2581", -2.0), ("a", -3.0), ("e", -3.0), ("\u2581the", -4.0), ("film", -5.0)]
    specials = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{i:02X}>", 0.0) for i in range(256))]
    backend = Backend(models.Unigram([*specials, *pieces], 0, True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return backend, {"tokenizer_class": GENERIC, **named}, "llama"


QWEN = [added("<|endoftext|>", special=True), added("<|im_start|>", special=True), added("<|im_end|>", special=True)]
KINDS: dict[str, Callable[[], Made]] = {
    **{name: family(name) for name in TOKENIZERS},
    "gpt2, add_prefix_space": family("gpt2", add_prefix_space=True),
    "gpt2, add_prefix_space in tokenizer.json": prefix_space(),
    "gpt2, generic, add_prefix_space": family("gpt2", tokenizer_class=GENERIC, add_prefix_space=True),
    "gpt2, generic, add_prefix_space in tokenizer.json": prefix_space(tokenizer_class=GENERIC),
    "gpt2, add_bos_token without a template": family("gpt2", add_bos_token=True, bos_token="<|endoftext|>"),
    "gpt2, clean_up": family("gpt2", clean_up_tokenization_spaces=True),
    "gpt2, pad token of the configuration alone": family("gpt2", pad_token="<pad>"),
    "gpt2, split_special_tokens": family("gpt2", split_special_tokens=True),
    "smollm2": smollm2,
    "llama2": llama2("LlamaTokenizer", False),
    "llama2, legacy": llama2("LlamaTokenizer", True),
    "llama2, generic": llama2(GENERIC, False),
    "gemma": llama2(GENERIC, False, gemma=True),
    "llama, extra special tokens": family("llama", additional_special_tokens=["<x>", "<y>"]),
    "qwen3, added tokens of the configuration": family(
        "qwen3", added_tokens_decoder=dict(enumerate([*QWEN, added("<x>", lstrip=True), added("film")]))
    ),
    "bert, generic": family("bert", tokenizer_class=GENERIC, clean_up_tokenization_spaces=True, cls_token="[CLS]"),
    "bert, cased": family("bert", do_lower_case=False, strip_accents=True),
    "modernbert, added tokens": modernbert,
    "roberta": roberta,
    "t5, clean_up": family("t5", clean_up_tokenization_spaces=True),
    "t5, normalized": t5_normalized,
    "words": words,
    "unigram, bytes": unigram_bytes,
    **{f"{name}, flags": flagged(name) for name in ("gpt2", "bert", "t5")},
}


def write_kind(kind: str, directory: Path) -> str:
    """Write tokenizer.json, tokenizer_config.json and config.json. Return the model type."""
    backend, config, model_type = KINDS[kind]()
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return model_type


def reference(kind: str, directory: Path) -> Any:
    """Return transformers' tokenizer of `directory`.

    AutoTokenizer of transformers 5 drops the digits that smollm2 splits, in contrast to transformers 4
    (huggingface/transformers#45812), so that one is read by the generic class.
    """
    return (PreTrainedTokenizerFast if kind == "smollm2" else AutoTokenizer).from_pretrained(directory)
