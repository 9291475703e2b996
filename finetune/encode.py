"""Texts to token ids, framed as in pretraining: by a foreign tokenizer's own template, where there is one; ours have
`<s> text` for a decoder, `<cls> text <sep>` for an encoder, `text </s>` for an encoder-decoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mini_llm.engine.errors import CheckpointError


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of each text, special tokens included, and how many texts were cut to `max_length`."""

    tokens: list[np.ndarray]
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.tokens], dtype=np.int64)


def encode_texts(
    tokenizer: Any, texts: Sequence[str], causal: bool, max_length: int, is_encoder_decoder: bool = False
) -> EncodedTexts:
    """Encode `texts`; of one that is longer than `max_length` with its special tokens, the beginning is kept.

    A foreign tokenizer may lack a beginning-of-text token, which a decoder then does without. No row is empty.
    Raises CheckpointError when an encoder's tokenizer lacks its cls or sep token, an encoder-decoder's its end token.
    """
    if tokenizer.frame is not None and (causal or any(tokenizer.frame)):
        prefix, suffix = tokenizer.frame
    elif is_encoder_decoder:
        # Its classifier reads the decoder's state at the end token (Lewis et al. 2020).
        if tokenizer.eos_id is None:
            raise CheckpointError(
                f"{tokenizer.directory}: the tokenizer has no end token, which an encoder-decoder needs after a text. "
                "Use the tokenizer that the model was pretrained with"
            )
        prefix, suffix = [], [tokenizer.eos_id]
    elif causal:
        prefix, suffix = [i for i in [tokenizer.bos_id] if i is not None], []
    elif tokenizer.cls_id is None or tokenizer.sep_id is None:
        raise CheckpointError(
            f"{tokenizer.directory}: the tokenizer has no cls or no sep token, which an encoder needs around a text. "
            "Use the tokenizer that the model was pretrained with"
        )
    else:
        prefix, suffix = [tokenizer.cls_id], [tokenizer.sep_id]
    room = max_length - len(prefix) - len(suffix)
    filler = [] if prefix or suffix else [padding_id(tokenizer)]
    rows, truncated = [], 0
    for ids in tokenizer.encode_batch(list(texts)):
        truncated += len(ids) > room
        row = np.concatenate([prefix, ids[:room], suffix]).astype(np.int64)
        rows.append(row if len(row) else np.array(filler, dtype=np.int64))
    return EncodedTexts(rows, truncated)


def padding_id(tokenizer: Any) -> int:
    """The id that fills rows; the attention mask hides it, so almost any serves where a tokenizer has none.

    transformers takes the last token that is not padding for the end of a text: one that ends texts cannot be it.
    """
    ends = tokenizer.frame[1] if tokenizer.frame else []
    candidates = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    return next((i for i in candidates if i is not None and i not in ends), 0)


IGNORED_LABEL = -100


def collate(
    tokens: list[np.ndarray], labels: list[int] | np.ndarray | None, pad_id: int, max_length: int, multiple: int = 8
) -> dict[str, torch.Tensor]:
    """Tensors `input_ids`, `attention_mask` (B, T) and `labels` (B,), int64, padded on the right.

    T is the longest row, up to a multiple of `multiple` (few shapes, aligned rows), and never above `max_length`, what
    the model takes. Without `labels` they are -100, which counts nothing. Raises ValueError for an empty or longer row.
    """
    lengths = np.array([len(row) for row in tokens])
    if lengths.min() < 1 or lengths.max() > max_length:
        raise ValueError(f"rows of {lengths.min()} to {lengths.max()} tokens: 1 to {max_length} are possible")
    width = min(-(-int(lengths.max()) // multiple) * multiple, max_length)
    attention_mask = np.arange(width) < lengths[:, None]
    input_ids = np.full((len(tokens), width), pad_id, dtype=np.int64)
    input_ids[attention_mask] = np.concatenate(tokens)
    answers = np.full(len(tokens), IGNORED_LABEL) if labels is None else np.asarray(labels)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
        "labels": torch.from_numpy(answers.astype(np.int64)),
    }
