"""Objectives and data order are pure functions of (seed, step), for any number of ranks and micro-batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mini_llm.engine.batch import IGNORE_INDEX, BatchSplit
from mini_llm.engine.errors import ConfigError, DataError
from pretrain.objectives.causal import CausalObjective
from pretrain.objectives.masked import MaskedObjective
from pretrain.objectives.next_sentence import NextSentenceObjective
from pretrain.objectives.spans import SpanObjective, random_lengths, span_shape
from pretrain.objectives.windows import Windows

TOKENIZER = SimpleNamespace(
    vocab_size=200, special_ids=frozenset(range(7)), mask_id=4, cls_id=5, sep_id=6, bos_id=1, eos_id=2, pad_id=3
)


class Store:
    """A token store in memory: token i is distinguishable from its neighbours."""

    def __init__(self, count: int, special_every: int = 50) -> None:
        self.tokens = np.arange(count) % 193 + 7
        self.tokens[::special_every] = 1

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.tokens[start : start + count].astype(np.int64)


def masked(probability: float = 0.3, length: int = 32, count: int = 5000) -> MaskedObjective:
    return MaskedObjective(Store(count), length, 0, TOKENIZER, probability)


def test_every_epoch_visits_every_window_once_in_another_order():
    store = SimpleNamespace(read=lambda start, count: np.arange(start, start + count))
    windows = Windows(Store(1000), 10, 0, seed=1)
    windows.store = store
    epochs = [
        np.concatenate([windows.batch(epoch * windows.per_epoch + i, 1) for i in range(windows.per_epoch)])[:, 0]
        for epoch in (0, 1, 2)
    ]
    for starts in epochs:
        assert len(set(starts)) == windows.per_epoch
        assert set(np.diff(np.sort(starts))) == {10}
        assert starts.max() + 10 <= 1000
    assert not np.array_equal(epochs[0], epochs[1])
    assert len({starts.min() for starts in epochs}) > 1


def test_a_step_needs_no_earlier_step():
    straight, jump = CausalObjective(Store(3000), 16, 0), CausalObjective(Store(3000), 16, 0)
    split = BatchSplit(8, 8)
    batches = [straight.batches(step, split)[0]["input_ids"] for step in range(60)]
    for step in (59, 3, 40):
        assert torch.equal(jump.batches(step, split)[0]["input_ids"], batches[step])
    assert not torch.equal(CausalObjective(Store(3000), 16, 1).batches(0, split)[0]["input_ids"], batches[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: CausalObjective(Store(3000), 16, 0),
        lambda: masked(length=16),
        lambda: spans(),
        lambda: pairs_of_sentences(),
    ],
)
@pytest.mark.parametrize("micro, ranks", [(8, 1), (2, 1), (4, 2), (1, 4)])
def test_ranks_and_micro_batches_share_the_same_rows(make, micro, ranks):
    whole = make().batches(5, BatchSplit(8, 8))[0]
    parts = [batch for rank in range(ranks) for batch in make().batches(5, BatchSplit(8, micro, ranks, rank))]
    assert len(parts) == 8 // micro
    for key in whole:
        expected = sorted(whole[key].reshape(8, -1).tolist())
        assert sorted(row for batch in parts for row in batch[key].reshape(micro, -1).tolist()) == expected


def test_a_batch_that_does_not_divide_by_the_ranks_is_refused():
    with pytest.raises(ConfigError, match="global_batch_size"):
        BatchSplit(8, 3)
    with pytest.raises(ConfigError, match="2"):
        BatchSplit(6, 2, 2)


def test_causal_labels_are_the_next_tokens():
    batch = CausalObjective(Store(3000), 16, 0).batches(0, BatchSplit(4, 4))[0]
    assert torch.equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])


@pytest.mark.parametrize("count", [2, 17, 160, 161, 162, 1000])
def test_causal_evaluation_predicts_every_token_but_the_first_once(count):
    store = Store(count)
    batches = CausalObjective.evaluation(store, 16, 10)
    labels = torch.cat([batch["labels"].flatten() for batch in batches])
    assert labels[labels != IGNORE_INDEX].tolist() == store.tokens[1:].tolist()
    inputs = torch.cat([batch["input_ids"].flatten() for batch in batches])
    assert inputs[labels != IGNORE_INDEX].tolist() == store.tokens[:-1].tolist()


def test_masking_rates():
    """Exactly 30 % of each row; 80/10/10 within four standard errors over 25,000 masked positions."""
    objective = masked()
    rows = [objective.batches(step, BatchSplit(50, 50))[0] for step in range(56)]
    inputs, positions, labels = (torch.cat([r[k] for r in rows]) for k in ("input_ids", "positions", "labels"))
    assert labels.shape == positions.shape == (56 * 50, round(0.3 * 30))
    assert (labels != IGNORE_INDEX).all()
    shown = inputs.gather(1, positions)
    number = labels.numel()
    mask, same = (shown == TOKENIZER.mask_id).float().mean(), (shown == labels).float().mean()
    error = 4 * (0.8 * 0.2 / number) ** 0.5
    assert abs(mask - 0.8) < error
    # A random token is the right one in 1 of 193 cases.
    assert abs(same - (0.1 + 0.1 / 193)) < error


def test_no_special_token_is_masked_or_inserted():
    batch = masked().batches(0, BatchSplit(100, 100))[0]
    special = torch.tensor(sorted(TOKENIZER.special_ids))
    assert not torch.isin(batch["labels"], special).any()
    shown = batch["input_ids"].gather(1, batch["positions"])
    assert not torch.isin(shown[shown != TOKENIZER.mask_id], special).any()
    assert (batch["input_ids"][:, 0] == TOKENIZER.cls_id).all() and (
        batch["input_ids"][:, -1] == TOKENIZER.sep_id
    ).all()
    assert all(len(set(row)) == len(row) for row in batch["positions"].tolist())


def test_unmasked_tokens_are_untouched():
    objective = masked()
    windows = objective.windows.batch(3, 20)
    batch = objective.batches(3, BatchSplit(20, 20))[0]
    restored = batch["input_ids"].scatter(1, batch["positions"], batch["labels"])
    assert restored[:, 1:-1].tolist() == windows.tolist()


def test_a_row_of_special_tokens_has_no_labels():
    objective = masked()
    rows = np.full((2, 32), 1)
    rows[0, 5:9] = 50
    inputs, _, labels = objective.corrupt(rows, np.random.default_rng(0), 0.3)
    assert (labels[0] != IGNORE_INDEX).sum() == 4 and (labels[1] == IGNORE_INDEX).all()
    assert (inputs[1] == 1).all()


def test_masked_evaluation_is_the_same_every_time_and_masks_fifteen_percent():
    first, second = masked().evaluation(Store(1000), 4), masked().evaluation(Store(1000), 4)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a)
    assert first[0]["labels"].shape[1] == round(0.15 * 30)
    assert sum(len(batch["input_ids"]) for batch in first) == 1000 // 30


def test_too_little_text_is_an_error_with_a_fix():
    with pytest.raises(DataError, match="max_position_embeddings"):
        CausalObjective(Store(20), 16, 0)


SENTINELS = list(range(100, 140))
SPAN_TOKENIZER = SimpleNamespace(
    **vars(TOKENIZER) | {"special_ids": frozenset([*range(7), *SENTINELS]), "directory": "somewhere"},
    id_to_token=lambda i: f"<extra_id_{i - 100}>" if i in SENTINELS else f"<{i}>",
)


class LowStore(Store):
    """Tokens below the sentinels."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.tokens = np.arange(count) % 80 + 7


def spans(length: int = 32) -> SpanObjective:
    return SpanObjective(LowStore(5000), length, 0, SPAN_TOKENIZER, start_id=3)


@pytest.mark.parametrize("length", [8, 9, 32, 100, 128, 512, 513])
def test_a_corrupted_window_fits_the_context_exactly(length):
    shape = span_shape(length)
    assert shape.text - shape.noise + shape.spans + 1 == length
    assert shape.targets == shape.noise + shape.spans + 1
    if length >= 100:
        assert shape.noise / shape.text == pytest.approx(0.15, abs=0.01)
        assert shape.noise / shape.spans == pytest.approx(3, abs=0.25)


def test_the_target_restores_the_window():
    """Replacing each sentinel by its span of the target restores the text."""
    objective = spans()
    windows = objective.windows.batch(2, 20)
    batch = objective.batches(2, BatchSplit(20, 20))[0]
    assert batch["input_ids"].shape == (20, 32)
    for window, source, target in zip(windows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert source[-1] == target[-1] == TOKENIZER.eos_id
        marks = [i for i in source if i in SENTINELS]
        assert marks == SENTINELS[: len(marks)] == [i for i in target if i in SENTINELS]
        hidden, mark = {}, None
        for token in target[:-1]:
            if token in SENTINELS:
                mark = token
                hidden[mark] = []
            else:
                hidden[mark].append(token)
        assert all(hidden.values())
        restored = [part for token in source[:-1] for part in hidden.get(token, [token])]
        assert restored == window.tolist()


def test_the_decoder_reads_the_target_shifted():
    batch = spans().batches(0, BatchSplit(4, 4))[0]
    assert (batch["decoder_input_ids"][:, 0] == 3).all()
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["labels"][:, :-1])


def test_span_evaluation_is_the_same_every_time():
    first, second = spans().evaluation(LowStore(1000), 4), spans().evaluation(LowStore(1000), 4)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a)
    assert sum(len(batch["input_ids"]) for batch in first) == 1000 // span_shape(32).text


def test_random_lengths_are_uniform():
    """All 10 ways to write 6 as a sum of three positive parts are equally frequent."""
    rows = random_lengths(20_000, 6, 3, np.random.default_rng(0))
    assert (rows.sum(1) == 6).all() and (rows >= 1).all()
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == 10 and abs(counts - 2000).max() < 4 * 2000**0.5


def test_too_few_sentinels_are_an_error_with_a_fix():
    with pytest.raises(ConfigError, match=r"2 sentinels.*sentinels=100"):
        SpanObjective(Store(5000), 32, 0, SimpleNamespace(**vars(TOKENIZER) | {"id_to_token": str}, directory="d"), 3)


def pairs_of_sentences() -> NextSentenceObjective:
    return NextSentenceObjective(Store(20_000), 32, 0, TOKENIZER, 0.15)


def test_half_of_the_second_sentences_are_the_next_ones():
    """The label says whether B follows A; token types say which is which."""
    objective = pairs_of_sentences()
    follows = 0
    for step in range(20):
        windows = objective.windows.batch(step, 50)
        batch = objective.batches(step, BatchSplit(50, 50))[0]
        restored = batch["input_ids"].scatter(1, batch["positions"], batch["labels"].clamp(min=0))
        restored = torch.where(
            torch.zeros_like(restored, dtype=torch.bool).scatter(1, batch["positions"], batch["labels"] >= 0),
            restored,
            batch["input_ids"],
        )
        for row, types, label, window in zip(
            restored.tolist(), batch["token_type_ids"].tolist(), batch["next_sentence_label"].tolist(), windows,
            strict=True,
        ):  # fmt: skip
            first = types.count(0)
            assert row[0] == TOKENIZER.cls_id and row[first - 1] == row[-1] == TOKENIZER.sep_id
            assert types == sorted(types)
            assert row[1 : first - 1] == window[: first - 2].tolist()
            assert (row[first:-1] == window[first - 2 :].tolist()) == (label == 0)
            follows += label == 0
    assert abs(follows - 500) < 4 * (1000 * 0.25) ** 0.5
