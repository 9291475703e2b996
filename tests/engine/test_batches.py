"""Batches: every example once per epoch, a pure function of (seed, step), equal for any number of ranks; padding."""

import numpy as np
import pytest
import torch

from finetune.encode import collate, encode_texts, padding_id
from mini_llm.engine.batch import IGNORE_INDEX, LengthBatches, ordered_batches
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError

LENGTHS = np.random.default_rng(0).integers(1, 200, size=1003)


def epoch(batches, number=0):
    first = number * batches.steps_per_epoch
    return [batches.batch(step) for step in range(first, first + batches.steps_per_epoch)]


@pytest.mark.parametrize(
    ("size", "batch"), [(1003, 16), (1003, 1003), (1003, 5000), (1003, 1), (17, 16), (33, 32), (7, 3)]
)
def test_every_example_is_seen_once_per_epoch(size, batch):
    batches = LengthBatches(LENGTHS[:size], batch, seed=0)
    for number in (0, 3):
        seen = np.concatenate([micro for step in epoch(batches, number) for micro in step])
        assert sorted(seen) == list(range(size))
    sizes = [sum(map(len, step)) for step in epoch(batches)]
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("size", "batch", "ranks", "accumulation"), [(1003, 16, 2, 4), (9, 8, 2, 4), (33, 32, 4, 8), (17, 16, 2, 1)]
)
def test_ranks_split_every_step_and_none_is_idle(size, batch, ranks, accumulation):
    alone = LengthBatches(LENGTHS[:size], batch, seed=1, accumulation=ranks * accumulation)
    together = [LengthBatches(LENGTHS[:size], batch, 1, ranks, rank, accumulation) for rank in range(ranks)]
    assert {part.steps_per_epoch for part in together} == {alone.steps_per_epoch}
    for step in range(2 * alone.steps_per_epoch):
        parts = [part.batch(step) for part in together]
        assert all(len(part) == accumulation and all(len(micro) for micro in part) for part in parts)
        shared = np.concatenate([micro for part in parts for micro in part])
        assert sorted(shared) == sorted(np.concatenate(alone.batch(step)))
        assert len(set(shared)) == len(shared)


def test_a_step_does_not_depend_on_earlier_steps():
    straight = LengthBatches(LENGTHS, 16, seed=5)
    expected = [straight.batch(step) for step in range(200)]
    for step in (199, 3, 64, 63, 0, 130):
        fresh = LengthBatches(LENGTHS, 16, seed=5)
        for a, b, c in zip(fresh.batch(step), straight.batch(step), expected[step], strict=True):
            assert np.array_equal(a, b) and np.array_equal(a, c)


def test_the_order_changes_with_seed_and_epoch():
    one, two = LengthBatches(LENGTHS, 16, seed=0), LengthBatches(LENGTHS, 16, seed=1)
    assert not np.array_equal(np.concatenate(one.batch(0)), np.concatenate(two.batch(0)))
    groups = [{frozenset(step[0].tolist()) for step in epoch(one, number)} for number in (0, 1)]
    assert len(groups[0] & groups[1]) < len(groups[0]) / 10


def test_batches_have_similar_lengths_and_random_order():
    padded = {"sorted": 0, "shuffled": 0}
    steps = epoch(LengthBatches(LENGTHS, 16, seed=0))
    shuffled = np.random.default_rng(0).permutation(len(LENGTHS))
    for index, (batch,) in enumerate(steps):
        padded["sorted"] += LENGTHS[batch].max() * len(batch)
        padded["shuffled"] += LENGTHS[shuffled[16 * index : 16 * index + 16]].max() * 16
    assert padded["sorted"] < 1.1 * LENGTHS.sum() < 1.5 * LENGTHS.sum() < padded["shuffled"]
    means = [LENGTHS[batch].mean() for (batch,) in steps]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.4


def test_too_few_examples_to_split_are_an_error():
    with pytest.raises(ConfigError, match="batch of 4 examples"):
        LengthBatches(LENGTHS, 4, seed=0, ranks=2, accumulation=4)
    with pytest.raises(DataError, match="3 training examples for 2 processes x 2"):
        LengthBatches(LENGTHS[:3], 8, seed=0, ranks=2, accumulation=2)


def test_ordered_batches_hold_every_example_once_longest_first():
    batches = ordered_batches(LENGTHS, 32)
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(LENGTHS))) and max(map(len, batches)) == 32
    assert (np.diff(LENGTHS[order]) <= 0).all()
    assert ordered_batches([], 32) == []


# Tensors


def test_collate_pads_on_the_right_to_a_multiple_of_eight():
    rows = [np.array([5, 6, 7]), np.arange(1, 11)]
    batch = collate(rows, [1, 0], pad_id=3, max_length=64)
    assert {key: (tuple(t.shape), t.dtype) for key, t in batch.items()} == {
        "input_ids": ((2, 16), torch.int64),
        "attention_mask": ((2, 16), torch.int64),
        "labels": ((2,), torch.int64),
    }
    assert batch["input_ids"][0].tolist() == [5, 6, 7] + [3] * 13
    assert batch["input_ids"][1].tolist() == list(range(1, 11)) + [3] * 6
    assert batch["attention_mask"].sum(1).tolist() == [3, 10]
    assert batch["attention_mask"][0].tolist() == [1] * 3 + [0] * 13
    assert batch["labels"].tolist() == [1, 0]


def test_collate_never_pads_beyond_the_model():
    assert collate([np.arange(9)], [0], pad_id=3, max_length=10)["input_ids"].shape == (1, 10)
    with pytest.raises(ValueError, match="each needs 1 to 10"):
        collate([np.arange(11)], [0], pad_id=3, max_length=10)
    with pytest.raises(ValueError, match="0 to 2 tokens"):
        collate([np.arange(0), np.arange(2)], [0, 0], pad_id=3, max_length=10)


def test_rows_without_labels_are_not_counted():
    assert collate([np.arange(2)], None, pad_id=3, max_length=8)["labels"].tolist() == [IGNORE_INDEX]


# Encoding


class Letters:
    """A tokenizer with one token per letter; "a" is 10."""

    directory, bos_id, eos_id, pad_id, cls_id, sep_id, frame, adds_bos = "letters", 1, 2, 3, 5, 6, None, True

    def encode_batch(self, texts):
        return [np.array([10 + ord(c) - ord("a") for c in text], dtype=np.int32) for text in texts]


def test_texts_get_the_special_tokens_of_pretraining():
    assert [row.tolist() for row in encode_texts(Letters(), ["ab", ""], True, 8).tokens] == [[1, 10, 11], [1]]
    assert [row.tolist() for row in encode_texts(Letters(), ["ab", ""], False, 8).tokens] == [[5, 10, 11, 6], [5, 6]]


def test_long_texts_are_truncated_at_the_end_and_counted():
    encoded = encode_texts(Letters(), ["abcdef", "abcd", "abc"], False, 5)
    assert [row.tolist() for row in encoded.tokens] == [[5, 10, 11, 12, 6]] * 3
    assert encoded.truncated == 2 and encoded.lengths.tolist() == [5, 5, 5]
    assert encode_texts(Letters(), ["abcde", "abcd"], True, 5).truncated == 1


def test_tokenizers_that_lack_special_tokens():
    bare = Letters()
    bare.bos_id = bare.pad_id = bare.cls_id = None
    assert [row.tolist() for row in encode_texts(bare, ["a", ""], True, 8).tokens] == [[10], [2]]
    assert padding_id(bare) == 2
    with pytest.raises(CheckpointError, match="has no cls token"):
        encode_texts(bare, ["a"], False, 8)
