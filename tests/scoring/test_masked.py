"""An encoder's masked loss has exact, seeded masks; it and the pseudo-perplexity equal a direct computation."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from mini_llm.engine.errors import CheckpointError
from scoring.masked import framed_windows, masked_rows, pseudo_perplexity, score_encoder
from scoring.score import Request, score
from scoring.subject import load_subject
from scoring.texts import Document, read_texts


@pytest.fixture(scope="module")
def subject(lab):
    return load_subject(lab / "runs" / "mlm", "cpu")


@pytest.fixture(scope="module")
def peer(lab):
    return AutoModelForMaskedLM.from_pretrained(lab / "runs" / "mlm").eval()


@pytest.mark.parametrize("words", [1, 2, 3, 4, 5, 6, 12, 70])
def test_exactly_15_percent_of_every_window_are_hidden(subject, words):
    document = Document("bird " * words, "")
    lengths = [len(ids) - 2 for ids, _ in framed_windows(subject, document.text)]
    rows = masked_rows(subject, document, 4, 7)
    assert [len(row.labels) for row in rows] == [max(1, round(0.15 * length)) for length in lengths]
    for row, (ids, first) in zip(rows, framed_windows(subject, document.text), strict=True):
        assert (row.inputs[0], row.inputs[-1]) == (subject.tokenizer.cls_id, subject.tokenizer.sep_id)
        assert (row.labels == ids[row.positions]).all() and row.positions.min() >= first
        others = np.delete(np.arange(len(ids)), row.positions)
        assert (row.inputs[others] == ids[others]).all()
        assert row.positions.max() < len(ids) - 1


def test_masks_follow_80_10_10_and_the_seed(subject):
    rows = [row for i in range(300) for row in masked_rows(subject, Document("a quiet river road " * 3, ""), i, 0)]
    shown = np.concatenate([row.inputs[row.positions] for row in rows])
    labels = np.concatenate([row.labels for row in rows])
    masked, same = (shown == subject.tokenizer.mask_id).mean(), (shown == labels).mean()
    assert masked == pytest.approx(0.8, abs=0.03) and same == pytest.approx(0.1, abs=0.03)
    assert not set(shown.tolist()) & (set(subject.tokenizer.special_ids) - {subject.tokenizer.mask_id})
    document = Document("three birds watch the river " * 9, "")

    def again(number, seed):
        return [row.inputs.tolist() for row in masked_rows(subject, document, number, seed)]

    assert again(0, 0) == again(0, 0) != again(0, 1) and again(0, 0) != again(1, 0)


def test_masked_loss_equals_transformers_whatever_the_batch(lab, subject, peer):
    nats, right = [], []
    for number, document in enumerate(read_texts(str(lab / "news.jsonl"))):
        for row in masked_rows(subject, document, number, 3):
            with torch.no_grad():
                logits = peer(torch.from_numpy(row.inputs)[None]).logits[0, row.positions].double()
            nats += (-logits.log_softmax(-1)[torch.arange(len(row.labels)), row.labels]).tolist()
            right += (logits.argmax(-1).numpy() == row.labels).tolist()
    for batch_tokens in (1, 100, 8192):
        scores = score_encoder(subject, [str(lab / "news.jsonl")], seed=3, batch_tokens=batch_tokens)
        (row,) = scores.as_dict(0, per_byte=False)["files"]
        assert row["tokens"] == len(nats) and row["loss"] == pytest.approx(np.mean(nats), rel=1e-5)
        assert row["accuracy"] == np.mean(right) and "bits_per_byte" not in row
        assert row["loss_low"] < row["loss"] < row["loss_high"]


def test_pseudo_perplexity_of_all_tokens_equals_masking_one_after_another(lab, subject, peer):
    file = str(lab / "news.jsonl")
    nats = []
    for document in read_texts(file, most=3):
        for ids, first in framed_windows(subject, document.text):
            for position in range(first, len(ids) - 1):
                inputs = torch.from_numpy(ids.copy())[None]
                inputs[0, position] = subject.tokenizer.mask_id
                with torch.no_grad():
                    logits = peer(inputs).logits[0, position].double()
                nats.append(-logits.log_softmax(-1)[ids[position]].item())
    found = pseudo_perplexity(subject, [file], "text", 10_000, 0, most=3)
    assert found["pseudo_perplexity_tokens"] == len(nats)
    assert found["pseudo_perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert found["pseudo_perplexity_low"] < found["pseudo_perplexity"] < found["pseudo_perplexity_high"]
    few = pseudo_perplexity(subject, [file], "text", 20, 0, most=3)
    assert few["pseudo_perplexity_tokens"] == 20


def test_a_report_holds_loss_and_pseudo_perplexity(lab):
    found = score(lab / "runs" / "mlm", Request([str(lab / "held-out.txt")], pseudo_tokens=8))
    assert found["files"][0]["resampled"] == "blocks" and found["pseudo_perplexity_tokens"] == 8


def test_a_tokenizer_without_a_mask_is_refused(lab):
    subject = load_subject(lab / "runs" / "mlm", "cpu")
    subject.tokenizer.mask_id = None
    with pytest.raises(CheckpointError, match="no mask token"):
        score_encoder(subject, [str(lab / "news.jsonl")])
