"""Texts mixed from pieces of training texts, labelled by the teacher."""

import json

import numpy as np
import pytest

from finetune.config import FinetuneConfig
from finetune.linear import fit_tfidf
from finetune.recipe.mixed_texts import mixed_count, mixed_texts
from finetune.run import finetune
from finetune.teacher import Teacher, targets
from tests.finetune.tiny_classifier import QUIET, letters, write_pretrained, write_rows

TEXTS = [f"one{i} two{i} three{i} four{i} five{i} six{i}" for i in range(40)]


def test_mixed_texts_consist_of_whole_words_in_their_order():
    words = {word: text for text in TEXTS for word in text.split()}
    found = mixed_texts(TEXTS, 300, seed=1)
    assert len(found) == 300 and found == mixed_texts(TEXTS, 300, seed=1) != mixed_texts(TEXTS, 300, seed=2)
    for text in found:
        assert len(text.split("\n")) <= 3
        for piece in filter(None, text.split("\n")):
            assert piece in words[piece.split()[0]]
    assert len({words[text.split()[0]] for text in found if text.split()}) == len(TEXTS)


def test_scripts_without_spaces_are_mixed_too():
    texts = ["".join(chr(0x4E00 + 50 * i + j) for j in range(50)) for i in range(5)]
    found = mixed_texts(texts, 100, seed=0)
    assert all(piece and any(piece in text for text in texts) for mixed in found for piece in mixed.split("\n"))
    assert min(map(len, found)) > 40


@pytest.mark.parametrize(
    ("unlabelled", "per_text", "budget", "count"),
    [(0, 4, None, 160), (39, 4, None, 160), (40, 4, None, 0), (0, 0, None, 0), (0, 4, 0.01, 28), (0, 1, 60.0, 40)],
)
def test_mixed_texts_stand_in_for_missing_unlabelled_ones_within_the_budget(unlabelled, per_text, budget, count):
    assert mixed_count(TEXTS, unlabelled, per_text, budget) == pytest.approx(count, abs=2)


def test_the_teacher_labels_mixed_texts_like_any_others():
    texts, names = zip(*letters(60), strict=True)
    labels = np.array([name == "upper" for name in names], dtype=np.int64)
    member = fit_tfidf(texts, labels, 2)
    teacher = Teacher([member], member.out_of_fold, np.zeros((0, 2)), 0.0, "")
    mixed = mixed_texts(texts, 30, seed=0)
    answers = targets(teacher, labels, mixed)
    assert answers.shape == (90, 2)
    np.testing.assert_allclose(answers[60:], member.probabilities(mixed), atol=1e-6)
    np.testing.assert_array_equal(answers[:60], targets(teacher, labels))


@pytest.mark.parametrize("per_text", [0, 4])
def test_a_run_records_how_many_texts_it_has_mixed(per_text, tiny_tokenizer, tmp_path, capsys):
    model = write_pretrained(tmp_path / "mlm", tiny_tokenizer)
    rows = write_rows(tmp_path / "train.csv", letters(60))
    settings = {**QUIET, "data": {"path": str(rows)}, "max_steps": 2, "mixed_texts": per_text, "run": "x"}
    finetune(FinetuneConfig(model=str(model), **settings), tmp_path / "runs")
    start = json.loads((tmp_path / "runs/x/start.json").read_text())
    assert start["mixed_texts"] == per_text * 54 and start["labelled_copies"] == max(1, per_text)
    assert ("216 texts mixed from pieces of training texts" in capsys.readouterr().err) == (per_text > 0)
