"""How much of each text a classifier reads: the pretrained context, or more where positions are rotations."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import FinetuneConfig
from ..pretrained import ROTARY

# The whole of this share of the texts is read, up to a limit: a step costs more with every token. Models that average
# their states may start as a bag of tokens (recipe/bag_start.py), which gains from the whole text.
SHARE, MULTIPLE = 0.9, 64
MOST_TOKENS, MOST_AVERAGED_TOKENS = 512, 1024
SAMPLE = 1000
SPECIAL_TOKENS = 2


def choose_length(
    config: FinetuneConfig, settings: dict[str, Any], tokenizer: Any, texts: Sequence[str]
) -> tuple[int | None, str | None]:
    """The most tokens of a text that are read, or None for as many as in pretraining; and a note where that is more.

    settings: config.json of the pretrained model.
    """
    if config.data.max_length or settings["model_type"] not in ROTARY:
        return config.data.max_length, None
    context = settings["max_position_embeddings"]
    every = max(1, len(texts) // SAMPLE)
    lengths = [len(ids) + SPECIAL_TOKENS for ids in tokenizer.encode_batch(list(texts[::every]))]
    needed = -(-int(np.quantile(lengths, SHARE)) // MULTIPLE) * MULTIPLE
    averaged = settings["model_type"] == "modernbert" and config.pooling != "cls"
    length = min(needed, MOST_AVERAGED_TOKENS if averaged else MOST_TOKENS)
    if length <= context:
        return None, None
    return length, (
        f"reads {length} tokens of a text, more than the {context} of pretraining: {SHARE:.0%} of the texts have at "
        f"most {needed}"
    )
