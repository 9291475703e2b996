"""Complete the pipeline of a tokenizer.json as transformers' AutoTokenizer does, from all files of a model directory.

tokenizer_config.json, special_tokens_map.json and added_tokens.json may add tokens and change a few stages
(transformers 5.23, tokenization_utils_tokenizers.py and the tokenizer class that the directory names).
"""

from pathlib import Path
from typing import Any

from mini_llm.engine.run.files import read_json

NAMES = ("unk", "bos", "eos", "pad", "mask", "cls", "sep")
# The class of a model type without a tokenizer_class.
_CLASSES = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer", "qwen3": "Qwen2Tokenizer", "t5": "T5Tokenizer"}
_BERT = {name: f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
_ALGORITHMS = {"BertTokenizer": "WordPiece", "T5Tokenizer": "Unigram"}  # the other classes: BPE
# The special tokens of a class when the configuration does not mention them.
_SPECIALS = {
    "BertTokenizer": _BERT,
    "GPT2Tokenizer": dict.fromkeys(("unk", "bos", "eos"), "<|endoftext|>"),
    "LlamaTokenizer": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
    "Qwen2Tokenizer": dict.fromkeys(("unk", "eos", "pad"), "<|endoftext|>"),
    "T5Tokenizer": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
}
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


class TokenizerSettings:
    """What the files beside tokenizer.json say. Missing and damaged files say nothing.

    `specials`: name ("bos", ...) -> token of the special tokens that the directory names. `extra`: tokens to add.
    """

    def __init__(self, directory: Path, algorithm: str, byte_level: bool) -> None:
        """`algorithm` and `byte_level` describe tokenizer.json: a class that does not fit it is ignored."""
        files = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
        config, named, added, model = (_read_object(directory / name) for name in files)
        decoder = config.get("added_tokens_decoder")
        if not isinstance(decoder, dict):
            # Older files. transformers lets special_tokens_map.json win.
            config = {**config, **named}
            decoder = {place: content for content, place in added.items()}
        self.config = config
        declared = config.get("tokenizer_class") or model.get("tokenizer_class")
        self.cls = str(declared or _CLASSES.get(str(model.get("model_type")), "")).removesuffix("Fast")
        if algorithm != _ALGORITHMS.get(self.cls, "BPE") or (self.cls == "LlamaTokenizer" and byte_level):
            self.cls = ""
        given = {key.removesuffix("_token"): value for key, value in config.items() if key.endswith("_token")}
        specials = {**_SPECIALS.get(self.cls, {}), **given}
        specials = {name: _content(token) for name, token in specials.items()}
        self.specials: dict[str, str] = {name: token for name, token in specials.items() if token is not None}
        # Names that the files mention, even as null.
        self.mentioned = {name for name in NAMES if name in specials or name in given}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        listed = list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else []
        self.extra = [*given.values(), *self.specials.values(), *listed]
        self.added = [decoder[place] for place in sorted(decoder, key=lambda place: (len(str(place)), str(place)))]

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a true-or-false option of tokenizer_config.json."""
        value = self.config.get(name)
        return value if isinstance(value, bool) else default


def complete(backend: Any, settings: TokenizerSettings) -> None:
    """Change a `tokenizers.Tokenizer`, read from tokenizer.json, as its settings say."""
    backend.no_truncation()
    backend.no_padding()
    # With split_special_tokens, the name of a special token in a text is plain characters.
    backend.encode_special_tokens = settings.flag("split_special_tokens")
    if change := _CHANGES.get(settings.cls):
        change(backend, settings)
    _add_tokens(backend, settings)
    if frame := {"BertTokenizer": ("cls", "sep"), "T5Tokenizer": (None, "eos")}.get(settings.cls):
        _set_template(backend, settings, *frame)


def _add_tokens(backend: Any, settings: TokenizerSettings) -> None:
    """Add the tokens of the settings that tokenizer.json lacks, or has with other flags."""
    known = backend.get_added_tokens_decoder().values()
    same, names = {repr(token) for token in known}, set(settings.specials.values())
    found = [token for token in (_added(entry, names) for entry in settings.added) if token is not None]
    new = [token for token in found if repr(token) not in same]
    present = {token.content for token in [*known, *new]}
    for entry in settings.extra:
        token = _added(entry, names, special=True)
        if token is not None and token.content not in present:
            present.add(token.content)
            new.append(token)
    if new:
        backend.add_tokens(new)


def _prefix_space(backend: Any, settings: TokenizerSettings) -> None:
    """Put a space before a text if the configuration says so (GPT2Tokenizer, Qwen2Tokenizer)."""
    from tokenizers.pre_tokenizers import ByteLevel, Sequence

    stage = backend.pre_tokenizer
    for step in list(stage) if isinstance(stage, Sequence) else [stage]:
        if isinstance(step, ByteLevel):
            step.add_prefix_space = settings.flag("add_prefix_space")


def _metaspace(backend: Any, settings: TokenizerSettings) -> None:
    """LlamaTokenizer puts U+2581 before a text, and with `legacy` also after each special token."""
    from tokenizers import decoders, pre_tokenizers

    prefix, legacy = settings.config.get("add_prefix_space") is not False, settings.flag("legacy")
    scheme = "never" if not prefix else "always" if legacy else "first"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def _normalize_as_bert(backend: Any, settings: TokenizerSettings) -> None:
    from tokenizers.normalizers import BertNormalizer

    backend.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.config.get("strip_accents"),
        lowercase=settings.flag("do_lower_case", True),
    )


_CHANGES = {
    "BertTokenizer": _normalize_as_bert,
    "GPT2Tokenizer": _prefix_space,
    "LlamaTokenizer": _metaspace,
    "Qwen2Tokenizer": _prefix_space,
}


def _set_template(backend: Any, settings: TokenizerSettings, before: str | None, after: str) -> None:
    from tokenizers.processors import TemplateProcessing

    names = [settings.specials.get(name) if name else None for name in (before, after)]
    first, last = ([] if name is None or backend.token_to_id(name) is None else [name] for name in names)
    backend.post_processor = TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, "$B:1" if before else "$B", *(f"{name}:1" if before else name for name in last)],
        special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys([*first, *last])],
    )


def _added(entry: Any, names: set[str], special: bool = False) -> Any:
    """Return the AddedToken of a string or of an object in a JSON file, or None. `names`: the named special tokens."""
    from tokenizers import AddedToken

    content = _content(entry)
    if content is None:
        return None
    entry = entry if isinstance(entry, dict) else {}
    special = special or bool(entry.get("special")) or content in names
    flags = {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
    return AddedToken(content, special=special, **flags)


def _content(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) and token else None


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    return content if isinstance(content, dict) else {}
