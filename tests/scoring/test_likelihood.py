"""A decoder's loss on files equals lm-eval's rolling log-likelihood and a direct computation with transformers."""

import json
from itertools import islice, pairwise

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import AutoModelForCausalLM

from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from scoring.decoder import byte_ends, prefix_id, score_decoder, score_documents
from scoring.score import Request, score
from scoring.subject import kind_of, load_subject
from scoring.tally import BINS, Tally, blocks, ece_interval, ratio_interval
from scoring.texts import iter_texts, read_texts
from scoring.windows import rolling_windows


def lm_eval_windows(ids: list[int], prefix: int, longest: int, context: int) -> list[tuple[list[int], list[int]]]:
    """lm-eval 0.4.13, utils.get_rolling_token_windows, as it is written there."""
    found = []
    if not ids:
        return found
    pred_len = longest - context + 1
    predicted = 0
    first = min(longest, len(ids))
    found.append(([prefix, *ids[: first - 1]], ids[:first]))
    predicted += first
    while predicted < len(ids):
        window = min(len(ids) - predicted, pred_len)
        end = predicted + window
        found.append((ids[end - longest - 1 : end - 1], ids[end - window : end]))
        predicted += window
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 16, 17, 23, 24, 25])
@pytest.mark.parametrize("stride", [None, 8, 5, 1])
def test_windows_are_those_of_lm_eval(count, stride):
    ids = list(range(100, 100 + count))
    found = list(rolling_windows(ids, 1, 8, stride))
    expected = lm_eval_windows(ids, 1, 8, 8 - (stride or 8) + 1)
    assert [(w.inputs, w.targets) for w in found] == expected
    assert [token for w in found for token in w.targets] == ids
    assert all(len(w.inputs) <= 8 and w.scored <= len(w.inputs) for w in found)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_beyond_the_context_is_refused(stride):
    with pytest.raises(ConfigError, match="--stride"):
        list(rolling_windows([5], 1, 8, stride))


@pytest.fixture(scope="module")
def subject(lab):
    return load_subject(lab / "runs" / "gpt", "cpu")


@pytest.fixture(scope="module")
def peer(lab):
    return AutoModelForCausalLM.from_pretrained(lab / "runs" / "gpt").eval()


def direct(peer, subject, text: str, stride: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the tokens of a text (N,), and all probabilities (N, V), one window at a time."""
    logs = []
    ids = subject.tokenizer.encode(text)
    for inputs, targets in lm_eval_windows(ids, 1, subject.context, subject.context - (stride or subject.context) + 1):
        with torch.no_grad():
            logs.append(peer(torch.tensor([inputs])).logits[0, -len(targets) :].double().log_softmax(-1))
    every = torch.cat(logs)
    return every[torch.arange(len(ids)), torch.tensor(ids)].numpy(), every.exp().numpy()


@pytest.mark.parametrize("stride", [None, 16, 1])
@pytest.mark.parametrize("batch_tokens", [1, 8192])
def test_log_probabilities_equal_transformers(lab, subject, peer, stride, batch_tokens):
    texts = islice(iter_texts(str(lab / "news.jsonl")), 6)
    for document, scores in score_documents(subject, texts, stride, batch_tokens):
        expected, probabilities = direct(peer, subject, document.text, stride)
        assert scores.log_probability == pytest.approx(expected, abs=2e-5)
        assert scores.confidence == pytest.approx(probabilities.max(-1), abs=2e-5)
        windows = lm_eval_windows(list(range(len(expected))), -1, 32, 32 - (stride or 32) + 1)
        before = [len(inputs) - len(targets) + 1 + i for inputs, targets in windows for i in range(len(targets))]
        assert scores.context.tolist() == before


def test_figures_of_a_file_follow_from_the_log_probabilities(lab, subject, peer):
    documents = read_texts(str(lab / "news.jsonl"))
    (row,) = score_decoder(subject, [str(lab / "news.jsonl")]).as_dict(0)["files"]
    pairs = [direct(peer, subject, document.text, None) for document in documents]
    logs, probabilities = (np.concatenate(column) for column in zip(*pairs, strict=True))
    ids = [token for document in documents for token in subject.tokenizer.encode(document.text)]
    size = sum(len(document.text.encode()) for document in documents)
    assert (row["documents"], row["tokens"], row["bytes"]) == (30, len(logs), size)
    assert row["loss"] == pytest.approx(-logs.mean(), rel=1e-5)
    assert row["perplexity"] == pytest.approx(np.exp(-logs.mean()), rel=1e-5)
    assert row["bits_per_byte"] == pytest.approx(-logs.sum() / np.log(2) / size, rel=1e-5)
    correct = probabilities.argmax(-1) == ids
    assert row["accuracy"] == correct.mean()
    edges = np.linspace(0, 1, BINS + 1)
    confidence = probabilities.max(-1)
    bins = [(confidence > low) & (confidence <= high) for low, high in pairwise(edges)]
    expected = sum(abs(confidence[b].sum() - correct[b].sum()) for b in bins) / len(ids)
    assert row["ece"] == pytest.approx(expected, abs=1e-4)
    sums = sum(p["loss"] * p["tokens"] for p in row["loss_by_position"])
    assert sums == pytest.approx(-logs.sum(), rel=1e-5)
    assert [p["from"] for p in row["loss_by_position"]] == [1, 2, 4, 8, 16, 32]


def test_blocks_of_a_long_text_hold_all_of_it(lab, subject):
    text = (lab / "held-out.txt").read_text()
    ends = byte_ends(subject.tokenizer, text)
    assert ends[-1] == len(text.encode()) and (np.diff(ends) >= 0).all()
    numbers = blocks(ends, len(text.encode()))
    assert numbers[0] == 0 and set(np.diff(numbers)) <= {0, 1} and numbers[-1] == len(text.encode()) // 1024 - 1
    (row,) = score_decoder(subject, [str(lab / "held-out.txt")]).as_dict(0)["files"]
    assert row["resampled"] == "blocks" and row["units"] == numbers[-1] + 1
    assert row["loss_low"] < row["loss"] < row["loss_high"]


def test_files_add_up_to_all_files(lab, subject):
    names = [str(lab / name) for name in ("news.jsonl", "held-out.txt")]
    *rows, whole = score_decoder(subject, names).as_dict(0)["files"]
    assert whole["file"] == "all files" and whole["tokens"] == sum(row["tokens"] for row in rows)
    assert whole["loss"] == pytest.approx(sum(r["loss"] * r["tokens"] for r in rows) / whole["tokens"])


def test_the_interval_is_scipys_and_covers_the_truth():
    generator = np.random.default_rng(0)
    below = generator.integers(5, 50, 60).astype(float)
    above = below * generator.gamma(3, 1, 60)
    expected = scipy.stats.bootstrap(
        (above, below), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, rng=0, n_resamples=4000
    ).confidence_interval
    assert ratio_interval(above, below, 0) == pytest.approx((expected.low, expected.high), rel=0.02)
    covered = 0
    for seed in range(150):
        generator = np.random.default_rng(seed + 1)
        size = generator.integers(5, 50, 40).astype(float)
        low, high = ratio_interval(size * generator.gamma(3, 1, 40), size, seed)
        covered += low <= 3 <= high
    assert 0.89 <= covered / 150 <= 0.99


def test_the_interval_of_the_calibration_error_contains_it():
    generator = np.random.default_rng(0)
    tally = Tally()
    for _ in range(40):
        confidence = generator.random(20)
        correct = generator.random(20) < confidence * 0.7
        tally.add(np.ones(20), confidence, correct, 80)
    found = tally.scores(0)
    assert found["ece_low"] < found["ece"] < found["ece_high"] and 0.05 < found["ece"] < 0.3
    assert ece_interval(np.ones((1, BINS)), np.ones((1, 3)), 0) == (BINS, BINS)


def test_a_model_without_a_context_token_or_a_file_without_text_is_refused(lab, subject, tmp_path):
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text"):
        score_decoder(subject, [str(tmp_path / "blank.txt")])
    with pytest.raises(CheckpointError, match="not a model"):
        kind_of(tmp_path)

    class NoEnds:
        bos_id = eos_id = None

    bare = load_subject(lab / "runs" / "gpt", "cpu")
    bare.tokenizer = NoEnds()
    with pytest.raises(CheckpointError, match="neither a bos nor an eos"):
        prefix_id(bare)


def test_the_whole_report_is_json(lab, capsys):
    request = Request([str(lab / "news.jsonl")], samples=3, sample_tokens=9, training=[str(lab / "news.jsonl")])
    found = score(lab / "runs" / "gpt", request)
    assert json.loads(json.dumps(found))["copied"][1]["longest_bytes"] >= 50
    assert found["diversity"]["samples"]["words"] > 0 and found["stride"] == 32
    assert "30 documents" in capsys.readouterr().err
