"""The linear teacher: out-of-fold targets, resume from disk, soft labels in the loss, and the classifier it teaches."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from finetune.encode import collate
from finetune.linear import TFIDF, LinearClassifier, fit_tfidf, make_vectorizer
from finetune.recipe import logistic_regression
from finetune.recipe.logistic_regression import log_count_ratios, log_loss
from finetune.recipe.lsa import fit_lsa
from finetune.teacher import fit_teacher, pool, read_members, targets
from mini_llm.engine.loss import cross_entropy_sum
from mini_llm.engine.step import _counts

TOPICS = {
    0: ["film", "actor", "scene", "plot", "camera", "director", "screen", "role", "cast", "drama"],
    1: ["goal", "match", "player", "team", "ball", "league", "score", "coach", "win", "season"],
    2: ["bread", "oven", "flour", "sugar", "butter", "recipe", "dough", "cake", "salt", "milk"],
}


def documents(count: int, seed: int, classes: int = 3) -> tuple[list[str], np.ndarray]:
    """Texts of which a third of the words belong to the topic of the label."""
    draw = random.Random(seed)
    labels = [draw.randrange(classes) for _ in range(count)]
    common = [f"word{i}" for i in range(60)]
    texts = [
        " ".join(draw.choice(TOPICS[label] if draw.random() < 0.3 else common) for _ in range(30)) for label in labels
    ]
    return texts, np.array(labels)


@pytest.mark.parametrize("classes", [2, 3])
def test_tfidf_learns_and_survives_saving(classes, tmp_path):
    texts, labels = documents(200, 0, classes)
    model = fit_tfidf(texts, labels, classes)
    unseen, truth = documents(100, 1, classes)
    found = model.probabilities(unseen)
    assert (found.argmax(1) == truth).mean() > 0.9 and np.allclose(found.sum(1), 1)
    model.save(tmp_path)
    loaded = LinearClassifier.load(tmp_path)
    assert loaded is not None and np.allclose(loaded.probabilities(unseen), found, atol=1e-5)
    assert LinearClassifier.load(tmp_path / "nothing") is None


def test_out_of_fold_probabilities_are_of_models_that_have_not_seen_the_text():
    """Labels at random: a model that had seen its texts would predict them far better than chance."""
    texts, labels = documents(120, 2, 2)
    labels = np.array([random.Random(5 + i).randrange(2) for i in range(len(labels))])
    model = fit_tfidf(texts, labels, 2)
    assert log_loss(model.out_of_fold, labels) > 0.6
    assert (model.probabilities(texts).argmax(1) == labels).mean() > (model.out_of_fold.argmax(1) == labels).mean()


def test_lsa_needs_unlabelled_text_and_beats_tfidf_with_few_labels():
    texts, labels = documents(15, 3)
    unlabelled, _ = documents(2000, 4)
    unseen, truth = documents(300, 6)
    assert fit_lsa(texts, labels, 3, unlabelled[:100]) is None
    lsa = fit_lsa(texts, labels, 3, unlabelled)
    assert lsa is not None
    accuracy = {
        m.name[:3]: (m.probabilities(unseen).argmax(1) == truth).mean() for m in (lsa, fit_tfidf(texts, labels, 3))
    }
    assert accuracy["LSA"] > accuracy["TF-"]


def test_lsa_leaves_out_frequent_tokens_where_they_hide_the_labels():
    """A subject that fills the texts has the leading coordinates; rarer words of opinion have them without it."""
    subjects = {0: [f"sea{i}" for i in range(8)], 1: [f"war{i}" for i in range(8)], 2: [f"law{i}" for i in range(8)]}
    opinions = {0: [f"dull{i}" for i in range(300)], 1: [f"fine{i}" for i in range(300)]}

    def reviews(count: int, seed: int) -> tuple[list[str], np.ndarray]:
        draw = random.Random(seed)
        labels = [draw.randrange(2) for _ in range(count)]
        return [
            " ".join(draw.choices(subjects[draw.randrange(3)], k=30) + draw.choices(opinions[label], k=6))
            for label in labels
        ], np.array(labels)

    texts, labels = reviews(40, 0)
    unlabelled, _ = reviews(1500, 1)
    unseen, truth = reviews(300, 2)
    found = fit_lsa(texts, labels, 2, unlabelled)
    assert found is not None and not {word for words in subjects.values() for word in words} & {*found.vocabulary}
    assert (found.probabilities(unseen).argmax(1) == truth).mean() > 0.95


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_lsa_survives_saving(share, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.recipe.lsa.LARGEST_SHARES", (share,))
    texts, labels = documents(60, 10)
    unseen = ["film film film goal", "", *documents(50, 12)[0]]
    found = fit_lsa(texts, labels, 3, documents(1500, 11)[0])
    assert found is not None
    found.save(tmp_path)
    loaded = LinearClassifier.load(tmp_path)
    assert loaded is not None and np.allclose(loaded.probabilities(unseen), found.probabilities(unseen), atol=1e-5)
    again = found.probabilities(["film goal film goal", "film goal film goal film goal"])
    assert np.allclose(again[0], again[1]), "a token counts once"


@pytest.mark.parametrize("classes", [2, 3])
def test_naive_bayes_ratios_are_those_of_counts_and_are_part_of_the_coefficients(classes, tmp_path):
    texts, labels = documents(200, 13, classes)
    vectorizer = make_vectorizer()
    features = vectorizer.fit_transform(texts)
    wanted = labels == 1
    ratios = log_count_ratios(features, wanted)
    counts = (features.toarray() > 0).astype(float)
    p, q = counts[wanted].sum(0) + 1, counts[~wanted].sum(0) + 1
    expected = np.log(p / p.sum()) - np.log(q / q.sum())
    assert np.allclose(ratios, expected / np.sqrt((expected**2).mean()), atol=1e-5)
    model = fit_tfidf(texts, labels, classes, naive_bayes=True)
    unseen, truth = documents(100, 14, classes)
    assert (model.probabilities(unseen).argmax(1) == truth).mean() > 0.9
    model.save(tmp_path)
    loaded = LinearClassifier.load(tmp_path)
    assert loaded is not None and np.allclose(loaded.probabilities(unseen), model.probabilities(unseen), atol=1e-5)


def test_a_teacher_is_read_back_unless_the_texts_changed(tmp_path):
    texts, labels = documents(60, 7)
    unlabelled, _ = documents(40, 8)
    first = fit_teacher(tmp_path, texts, labels, 3, unlabelled, 0)
    stamp = (tmp_path / "teacher.json").stat().st_mtime_ns
    again = fit_teacher(tmp_path, texts, labels, 3, unlabelled, 0)
    assert (tmp_path / "teacher.json").stat().st_mtime_ns == stamp
    assert np.array_equal(first.train, again.train) and np.array_equal(first.unlabelled, again.unlabelled)
    assert [m.name for m in read_members(tmp_path)] == [m.name for m in first.members]
    fit_teacher(tmp_path, texts[1:], labels[1:], 3, unlabelled, 0)
    assert (tmp_path / "teacher.json").stat().st_mtime_ns != stamp
    answers = targets(first, labels)
    assert answers.shape == (100, 3) and np.allclose(answers.sum(1), 1, atol=1e-5)
    assert (answers[:60].argmax(1) == labels).all(), "half of the weight is the label's"


def test_a_class_with_one_text_and_fewer_texts_than_folds():
    texts, labels = documents(4, 9)
    labels = np.array([0, 0, 1, 2])
    found = fit_tfidf(texts, labels, 3)
    assert np.isfinite(found.probabilities(texts)).all() and np.isfinite(found.out_of_fold).all()


def test_pool_of_equals_is_the_same_and_the_weight_moves_it():
    one, other = np.array([[0.9, 0.1]]), np.array([[0.2, 0.8]])
    assert np.allclose(pool([one, one]), one)
    assert np.allclose(pool([one, other], [1, 0]), one) and pool([one, other])[0, 0] < 0.9


def test_the_loss_of_soft_labels_is_that_of_labels_where_they_are_one_hot():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    one_hot = F.one_hot(labels, 3).float()
    weight = torch.tensor([1.0, 2.0, 0.5])
    for w in (None, weight):
        torch.testing.assert_close(cross_entropy_sum(logits, one_hot, w), cross_entropy_sum(logits, labels, w))
        torch.testing.assert_close(_counts({"labels": one_hot}, w, None), _counts({"labels": labels}, w, None))
    soft = torch.full((5, 3), 1 / 3)
    expected = -(logits.log_softmax(-1) / 3).sum()
    torch.testing.assert_close(cross_entropy_sum(logits, soft), expected)


def test_collate_keeps_distributions():
    batch = collate([np.array([1, 2]), np.array([3])], np.array([[0.5, 0.5], [0.1, 0.9]], dtype=np.float32), 0, 8)
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (2, 2)


def test_after_its_time_a_teacher_tries_nothing_more(tmp_path, monkeypatch):
    texts, labels = documents(200, 7)
    unlabelled, _ = documents(1500, 8)
    strengths, original = set(), logistic_regression.fit
    monkeypatch.setattr(logistic_regression, "fit", lambda *a: strengths.add(a[4]) or original(*a))
    cut = fit_teacher(tmp_path / "cut", texts, labels, 3, unlabelled, 0, seconds=0.0)
    assert [member.name for member in cut.members] == [TFIDF] and cut.train.shape == (200, 3) and len(strengths) == 1
    whole = fit_teacher(tmp_path / "whole", texts, labels, 3, unlabelled, 0)
    assert "LSA" in whole.description and len(strengths) == len(logistic_regression.STRENGTHS)
