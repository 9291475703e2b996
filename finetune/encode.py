"""Encode texts with the special tokens of pretraining, and collate batches.

A foreign tokenizer uses its own template. Ours use `<s> text` for a decoder, `<cls> text <sep>` for an encoder and
`text </s>` for an encoder-decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mini_llm.engine.errors import CheckpointError


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of each text, with special tokens, and the number of texts truncated to `max_length`."""

    tokens: list[np.ndarray]
    truncated: int

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.tokens], dtype=np.int64)


def encode_texts(
    tokenizer: Any, texts: Sequence[str], causal: bool, max_length: int, is_encoder_decoder: bool = False
) -> EncodedTexts:
    """Encode `texts`, truncating each at the end to `max_length` tokens including special tokens.

    A decoder works without a bos token if its foreign tokenizer has none. No row is empty. Raises CheckpointError if
    the tokenizer of an encoder lacks a cls or sep token, or that of an encoder-decoder an eos token.
    """
    if tokenizer.frame is not None and (causal or any(tokenizer.frame)):
        prefix, suffix = tokenizer.frame
    elif is_encoder_decoder:
        # The classifier reads the decoder's state at the eos token (Lewis et al. 2020).
        if tokenizer.eos_id is None:
            raise CheckpointError(
                f"{tokenizer.directory}: the tokenizer has no eos token, which an encoder-decoder needs after a text. "
                "Use the tokenizer that the model was pretrained with"
            )
        prefix, suffix = [], [tokenizer.eos_id]
    elif causal:
        prefix, suffix = [i for i in [tokenizer.bos_id] if i is not None], []
    elif tokenizer.cls_id is None or tokenizer.sep_id is None:
        raise CheckpointError(
            f"{tokenizer.directory}: the tokenizer lacks a cls or sep token, which an encoder needs around a text. "
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
    """Return the id used for padding. If the tokenizer has none, another id works, since the attention mask hides it.

    transformers takes the last token that is not padding as the end of a text, so padding must not be a token that ends
    texts.
    """
    ends = tokenizer.frame[1] if tokenizer.frame else []
    candidates = (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id)
    return next((i for i in candidates if i is not None and i not in ends), 0)


IGNORED_LABEL = -100


def collate(
    tokens: list[np.ndarray], labels: list[int] | np.ndarray | None, pad_id: int, max_length: int, multiple: int = 8
) -> dict[str, torch.Tensor]:
    """Return int64 tensors `input_ids`, `attention_mask` (B, T) and `labels` (B,), padded on the right.

    T is the length of the longest row, rounded up to a multiple of `multiple` (few shapes, aligned rows), and at most
    `max_length`, the model's limit. Without `labels`, all labels are -100, which the loss ignores. Target distributions
    (B, C) stay float32. Raises ValueError for a row that is empty or longer than `max_length`.
    """
    lengths = np.array([len(row) for row in tokens])
    if lengths.min() < 1 or lengths.max() > max_length:
        raise ValueError(f"rows of {lengths.min()} to {lengths.max()} tokens: each needs 1 to {max_length}")
    width = min(-(-int(lengths.max()) // multiple) * multiple, max_length)
    attention_mask = np.arange(width) < lengths[:, None]
    input_ids = np.full((len(tokens), width), pad_id, dtype=np.int64)
    input_ids[attention_mask] = np.concatenate(tokens)
    label_ids = np.full(len(tokens), IGNORED_LABEL) if labels is None else np.asarray(labels)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(attention_mask.astype(np.int64)),
        "labels": torch.from_numpy(label_ids if label_ids.dtype == np.float32 else label_ids.astype(np.int64)),
    }
