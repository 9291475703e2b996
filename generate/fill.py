"""Fill the masks of a text with a masked language model (an encoder)."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mini_llm.engine.device import choose_device
from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.model import MaskedLM, load_model
from mini_llm.tokenization.load import load_tokenizer

from .inspection.collect import MASKS, frame
from .load import find_generator
from .sampling import check_finite


class Candidate(NamedTuple):
    """A token for a mask: its text, its id and its probability."""

    text: str
    id: int
    probability: float


class MaskFiller:
    """A masked language model with its tokenizer. Made by `load_filler`."""

    def __init__(self, model: MaskedLM, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def fill(self, text: str, count: int = 5) -> list[list[Candidate]]:
        """Return the `count` most probable tokens for each <mask> (or [MASK]) of `text`, most probable first.

        All masks are predicted at once, each without knowing what fills the others. A candidate may begin with a space.
        Raises ConfigError for a text without a mask or longer than the context, NonFiniteError.
        """
        limit = self.model.config.max_position_embeddings
        ids, dropped = frame(self.model, self.tokenizer, text, limit)
        if dropped:
            raise ConfigError(f"the text is {dropped} tokens longer than the model's context of {limit}: shorten it")
        places = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_id]
        if not places:
            raise ConfigError(f"there is no {MASKS[0]} in the text {text!r}; write it where a word is missing")
        hidden = self.model.trunk(torch.tensor([ids], device=next(self.model.parameters()).device))
        logits = self.model.predict(hidden[0, places]).float()
        check_finite(logits)
        best = logits.softmax(-1).topk(min(count, logits.size(-1)))
        return [
            [Candidate(self._spell(token), token, p) for token, p in zip(row.tolist(), values.tolist(), strict=True)]
            for row, values in zip(best.indices, best.values, strict=True)
        ]

    def filled(self, text: str, candidates: list[list[Candidate]]) -> str:
        """Return `text` with the most probable candidate in place of each mask."""
        ids, _ = frame(self.model, self.tokenizer, text, self.model.config.max_position_embeddings)
        best = iter(row[0].id for row in candidates)
        return self.tokenizer.decode([next(best) if i == self.tokenizer.mask_id else i for i in ids])

    def _spell(self, token: int) -> str:
        if token >= self.tokenizer.vocab_size:
            return f"<{token}>"
        data = self.tokenizer.token_bytes(token)
        return self.tokenizer.id_to_token(token) if data is None else data.decode("utf-8", "replace")


def load_filler(path: Path, device: str = "auto", dtype: str = "auto") -> MaskFiller:
    """Load the masked language model at `path`. Raises CheckpointError, ConfigError, ModelDirectoryError."""
    directory = find_generator(path)
    model = load_model(directory)
    if not isinstance(model, MaskedLM):
        raise CheckpointError(
            f"{directory}: not a masked language model, so it cannot fill masks; name an encoder, such as runs/mlm"
        )
    tokenizer = load_tokenizer(directory, model.config.vocab_size)
    if tokenizer.mask_id is None:
        raise CheckpointError(f"{directory}: the tokenizer has no mask token; copy that of the training run")
    if tokenizer.remark:
        print(f"generate: {tokenizer.remark}", file=sys.stderr)
    model.to(*choose_device(device, dtype))
    return MaskFiller(model, tokenizer)
