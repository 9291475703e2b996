"""The special tokens around a text: the one place that knows what stands before and after what a model reads."""

from collections.abc import Sequence
from typing import Any, Literal

from mini_llm.engine.errors import CheckpointError

Kind = Literal["causal", "masked", "seq2seq"]


def text_frame(tokenizer: Any, kind: Kind) -> tuple[list[int], list[int]]:
    """Return the ids before and after a text that a model of `kind` reads.

    A tokenizer.json has a template (its post-processor), which is followed, whatever it adds. A SentencePiece model has
    none: tokenizers trained here put `<s> text` for a decoder, `<cls> text <sep>` for an encoder and `text </s>` for an
    encoder-decoder. Raises CheckpointError if the tokenizer lacks one of these tokens.
    """
    if tokenizer.frame is not None:
        before, after = tokenizer.frame
        return list(before), list(after)
    if kind == "causal":
        return [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else [], []
    if kind == "seq2seq":
        return [], [_required(tokenizer, "eos", "an encoder-decoder needs after a text")]
    needed = "an encoder needs around a text"
    return [_required(tokenizer, "cls", needed)], [_required(tokenizer, "sep", needed)]


def pair_frame(tokenizer: Any, kind: Kind) -> tuple[list[int], list[int], list[int]]:
    """Return the ids before, between and after two texts. Raises CheckpointError as text_frame does."""
    if tokenizer.frame is not None:
        return tokenizer.pair_frame
    before, after = text_frame(tokenizer, kind)
    # The templates of save.py.
    return before, [*after, *(before if kind == "causal" else [])], after


def padding_id(tokenizer: Any) -> int:
    """Return the id used for padding. If the tokenizer has none, another id works, since the attention mask hides it.

    transformers takes the last token that is not padding as the end of a text, so padding must not be a token that ends
    texts.
    """
    ends: Sequence[int] = tokenizer.frame[1] if tokenizer.frame else []
    candidates = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    return next((i for i in candidates if i is not None and i not in ends), 0)


def _required(tokenizer: Any, name: str, needed: str) -> int:
    token_id = getattr(tokenizer, f"{name}_id")
    if token_id is None:
        raise CheckpointError(
            f"{tokenizer.directory}: the tokenizer has no {name} token, which {needed}. "
            "Use the tokenizer that the model was pretrained with"
        )
    return token_id
