"""Validation samples: greedy continuations of the first validation texts, beside how the texts go on."""

import torch

from pretrain.samples import COLUMNS, NEW_TOKENS, PROMPT_TOKENS, continue_greedily, make_samples
from tests import loops


def test_each_token_is_the_most_probable_one_after_those_before_it():
    model = loops.fresh()
    prompts = loops.rows(0, count=3)[:, :5]
    written = continue_greedily(model, prompts, 4)
    assert written.shape == (3, 4) and model.training
    model.eval()
    scores = model(input_ids=torch.cat([prompts, written], dim=1)[:, :-1])
    assert torch.equal(scores[:, 4:].argmax(-1), written)


def test_samples_are_taken_from_the_first_rows_of_the_validation_batches():
    held_out = [{"input_ids": loops.rows(step, count=2)[:, :12]} for step in (1, 2)]
    columns, rows = make_samples(3, held_out, lambda ids: " ".join(map(str, ids)))(loops.fresh())
    assert columns == COLUMNS and len(rows) == 3
    joined = torch.cat([batch["input_ids"] for batch in held_out]).tolist()
    for (prompt, written, text), ids in zip(rows, joined, strict=False):
        assert f"{prompt} {text}" == " ".join(map(str, ids)), "12 tokens are a prompt of 6 and their continuation"
        assert len(written.split()) == 6
    assert PROMPT_TOKENS == NEW_TOKENS == 32
