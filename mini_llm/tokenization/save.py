"""Write the tokenizer files of a Hugging Face model directory."""

import json
from pathlib import Path
from typing import Any, Literal

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import read_json, write_atomic, write_json
from mini_llm.tokenization.fast import FastTokenizer
from mini_llm.tokenization.tokenizer import SHA256_KEY, SPACE, Tokenizer

Kind = Literal["causal", "masked", "seq2seq"]

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "tokenizer.model",
)


def save_tokenizer(
    tokenizer: Tokenizer | FastTokenizer,
    directory: Path | str,
    kind: Kind,
    model_max_length: int | None = None,
    pad_id: int | None = None,
) -> None:
    """Write the tokenizer into a model directory, so that AutoTokenizer adds the special tokens of training:
    `<s> text` for a causal model, `<cls> text <sep>` for a masked one, `text </s>` for an encoder-decoder.
    `model_max_length` is the model's context length.

    AutoTokenizer reads '<s>' or '<mask>' in a text as the special token, as fill-mask prompts need; our `encode` never
    does. With `split_special_tokens=True`, AutoTokenizer gives the same ids as `encode` for every text.

    Takes tokenizer.json from `tokenizer.directory` if it is there, else converts tokenizer.model. Copies a tokenizer
    that was not trained by this program unchanged, except for `model_max_length` and the padding token `pad_id` if
    given. Writes each file atomically, tokenizer.model last.
    Raises CheckpointError when the files of `tokenizer.directory` contradict each other.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if not isinstance(tokenizer, Tokenizer) or not tokenizer.lossless:
        _copy(tokenizer, directory)
        changes: dict[str, Any] = {} if model_max_length is None else {"model_max_length": model_max_length}
        changes |= {} if pad_id is None else {"pad_token": tokenizer.id_to_token(pad_id)}
        if changes:
            config = read_json(directory / "tokenizer_config.json")
            write_json(directory / "tokenizer_config.json", {**(config if isinstance(config, dict) else {}), **changes})
        return
    existing = tokenizer.directory / "tokenizer.json"
    pipeline = _read_pipeline(existing, tokenizer) if existing.is_file() else convert(tokenizer)
    write_atomic(directory / "tokenizer.json", _with_template(pipeline, tokenizer, kind))
    write_json(directory / "tokenizer_config.json", _config(tokenizer, kind, model_max_length))
    write_atomic(directory / "tokenizer.model", tokenizer.model)


def convert(tokenizer: Tokenizer) -> dict[str, Any]:
    """Convert a SentencePiece model to the content of tokenizer.json, as transformers' LlamaTokenizer does, but without
    merges that would turn text into a special or byte token (such as '<s' + '>', possible once '<s' is a token because
    of '<span'). Does not use transformers, which takes a second to import.

    A SentencePiece model has no list of merges: two tokens may merge if their concatenation is a token, by its score.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    names = {tokenizer.id_to_token(i): i for i in range(tokenizer.vocab_size)}
    apart = tokenizer.special_ids | tokenizer.user_defined_ids
    ordinary = {token: i for token, i in names.items() if i not in apart and not tokenizer.is_byte(i)}
    cuts = ((whole[:i], whole[i:]) for whole in ordinary for i in range(1, len(whole)))
    merges = [(left, right) for left, right in cuts if left in ordinary and right in ordinary]
    merges.sort(key=lambda merge: (-tokenizer.score(ordinary["".join(merge)]), len(merge[0])))
    backend = Backend(models.BPE(names, merges, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    for i in sorted(apart):
        backend.add_tokens([AddedToken(tokenizer.id_to_token(i), special=i in tokenizer.special_ids, normalized=False)])
    return json.loads(backend.to_str())


def _read_pipeline(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    from tokenizers import Tokenizer as Backend

    advice = "Delete it: it is rebuilt from tokenizer.model"
    try:
        text = path.read_text(encoding="utf-8")
        pipeline = json.loads(text)
        same = pipeline["model"]["vocab"] == {tokenizer.id_to_token(i): i for i in range(tokenizer.vocab_size)}
        if same:
            Backend.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: damaged ({error}). {advice}") from None
    if not same:
        raise CheckpointError(
            f"{path}: its vocabulary differs from the one of tokenizer.model in the same directory. {advice}"
        )
    return pipeline


def _with_template(pipeline: dict[str, Any], tokenizer: Tokenizer, kind: Kind) -> str:
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    bos, eos = _required(tokenizer, "bos_id"), _required(tokenizer, "eos_id")
    cls = bos if tokenizer.cls_id is None else tokenizer.cls_id
    sep = eos if tokenizer.sep_id is None else tokenizer.sep_id
    before, after = {"causal": ([bos], []), "masked": ([cls], [sep]), "seq2seq": ([], [eos])}[kind]
    names = [[tokenizer.id_to_token(i) for i in ids] for ids in (before, after)]
    single = [*names[0], "$A", *names[1]]
    # In a pair, the second text starts with <s> for a causal model, as in Llama, but not with <cls> for a masked one.
    pair = [*single, *(names[0] if kind == "causal" else []), "$B:1", *(f"{name}:1" for name in names[1])]
    backend = Backend.from_str(json.dumps(pipeline))
    backend.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=[(tokenizer.id_to_token(i), i) for i in (*before, *after)]
    )
    return backend.to_str(pretty=True) + "\n"


def _config(tokenizer: Tokenizer, kind: Kind, model_max_length: int | None) -> dict[str, Any]:
    named = {name: getattr(tokenizer, f"{name}_id") for name in ("unk", "bos", "eos", "pad", "mask", "cls", "sep")}
    config: dict[str, Any] = {f"{name}_token": tokenizer.id_to_token(i) for name, i in named.items() if i is not None}
    if kind == "causal":
        # Pad on the left: generation continues from the last position of every row.
        config |= {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_prefix_space": False}
        config |= {"add_bos_token": True, "add_eos_token": False, "padding_side": "left"}
    else:
        # This class takes its behaviour from tokenizer.json alone.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right"}
    config |= {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        SHA256_KEY: tokenizer.sha256,
    }
    return config if model_max_length is None else {**config, "model_max_length": model_max_length}


def _required(tokenizer: Tokenizer, name: str) -> int:
    token_id = getattr(tokenizer, name)
    if token_id is None:
        raise CheckpointError(f"{tokenizer.directory / 'tokenizer.model'}: has no {name.removesuffix('_id')} token")
    return token_id


def _copy(tokenizer: Tokenizer | FastTokenizer, directory: Path) -> None:
    source = tokenizer.directory
    if source.resolve() == directory.resolve():
        return
    for name in _FILES:
        if (source / name).is_file():
            write_atomic(directory / name, (source / name).read_bytes())
    if not isinstance(tokenizer, Tokenizer):
        # It may have been converted from older files.
        write_atomic(directory / "tokenizer.json", tokenizer.content)
