"""Scores and objectives of the tasks, beside scikit-learn, seqeval and small computations of their own."""

import random

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import torch
from torch.nn import functional as F

from finetune.data_config import DataConfig
from finetune.tasks.metrics import answers, classes, entities, label_sets, numbers, ranks
from finetune.tasks.metrics.bootstrap import point_scores, scores_with_intervals
from finetune.tasks.objectives.answers import AnswerLoss
from finetune.tasks.objectives.label_sets import LabelSetLoss
from finetune.tasks.objectives.numbers import SquaredError
from finetune.tasks.objectives.ranks import RankLoss
from finetune.tasks.ordinal import Ordinal
from finetune.tasks.task import Row
from mini_llm.engine.batch import IGNORE_INDEX
from mini_llm.engine.loss import cross_entropy_sum

DRAW = np.random.default_rng(0)
TAGS = ("O", "B-X", "I-X", "B-Y", "I-Y")


def spans(tags):
    """Entities as conlleval finds them, written independently of seqeval: (type, first, last)."""
    found, open_ = [], None
    for i, tag in enumerate([*tags, "O"]):
        kind = tag[2:]
        if open_ and (tag == "O" or tag[0] == "B" or kind != open_[0]):
            found.append((*open_, i - 1))
            open_ = None
        if tag != "O" and open_ is None:
            open_ = (kind, i)
    return found


def test_entities_are_those_of_conlleval_and_seqeval():
    draw = random.Random(0)
    truth = [[draw.choice(TAGS) for _ in range(draw.randrange(1, 12))] for _ in range(200)]
    predicted = [[tag if draw.random() < 0.7 else draw.choice(TAGS) for tag in tags] for tags in truth]
    for tags in truth:
        assert [tuple(entity) for entity in entities.entities(tags)] == spans(tags)
        assert entities.entities(entities.repaired(tags)) == entities.entities(tags)
    found = point_scores(entities.statistics(truth, predicted, ["X", "Y"]), entities.scores)
    assert found["entity_f1"] == pytest.approx(seqeval.metrics.f1_score(truth, predicted))
    assert found["entity_precision"] == pytest.approx(seqeval.metrics.precision_score(truth, predicted))
    assert found["entity_recall"] == pytest.approx(seqeval.metrics.recall_score(truth, predicted))
    assert found["word_accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(truth, predicted))


def test_repaired_tags_are_valid():
    assert entities.repaired(["I-X", "I-X", "O", "I-Y", "B-X", "I-Y"]) == ["B-X", "I-X", "O", "B-Y", "B-X", "B-Y"]


def test_scores_of_label_sets_are_those_of_scikit_learn():
    truth, predicted = DRAW.integers(0, 2, (2, 60, 4))
    predicted[:, 3] = truth[:, 3] = 0
    found = point_scores(label_sets.statistics(truth, predicted), label_sets.scores)
    assert found["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="micro"))
    kept = slice(0, 3)
    macro = sklearn.metrics.f1_score(truth[:, kept], predicted[:, kept], average="macro")
    assert found["macro_f1"] == pytest.approx(macro)
    assert found["exact_match"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert found["hamming_loss"] == pytest.approx(sklearn.metrics.hamming_loss(truth, predicted))


def test_scores_of_numbers_are_those_of_scikit_learn():
    truth = 1e6 + DRAW.normal(size=80)
    predicted = truth + DRAW.normal(size=80)
    found = point_scores(numbers.statistics(truth, predicted, truth.mean()), numbers.scores)
    assert found["rmse"] == pytest.approx(sklearn.metrics.root_mean_squared_error(truth, predicted))
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(truth, predicted))
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(truth, predicted))
    assert found["pearson"] == pytest.approx(np.corrcoef(truth, predicted)[0, 1])


def test_scores_of_ranks_are_those_of_scikit_learn():
    truth, predicted = DRAW.integers(0, 5, (2, 80))
    found = point_scores(ranks.statistics(truth, predicted), ranks.scores)
    assert found["kappa"] == pytest.approx(sklearn.metrics.cohen_kappa_score(truth, predicted, weights="quadratic"))
    assert found["rank_mae"] == pytest.approx(np.abs(truth - predicted).mean())


def test_scores_of_classes_are_those_of_scikit_learn():
    truth, probabilities = DRAW.integers(0, 3, 80), DRAW.dirichlet(np.ones(3), 80)
    predicted = probabilities.argmax(-1)
    found = point_scores(classes.statistics(truth, probabilities), classes.scores)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, predicted, average="macro"))
    assert found["mcc"] == pytest.approx(sklearn.metrics.matthews_corrcoef(truth, predicted))
    assert found["log_loss"] == pytest.approx(sklearn.metrics.log_loss(truth, probabilities))


@pytest.mark.parametrize(
    ("answer", "truth", "exact", "f1"),
    [
        ("The Eiffel Tower", ["eiffel tower!"], 1, 1),
        ("in the Eiffel Tower", ["Eiffel Tower"], 0, 0.8),
        ("Paris", ["London", "paris."], 1, 1),
        ("Paris", ["London"], 0, 0),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("a a b", ["a b b"], 0, 2 / 3),
    ],
)
def test_answers_are_compared_as_squad_does(answer, truth, exact, f1):
    assert answers.statistics([truth], [answer])[0] == pytest.approx([exact, f1])


def test_intervals_hold_the_score_and_narrow_with_more_rows():
    widths = []
    for count in (50, 800):
        truth, predicted = DRAW.integers(0, 2, (2, count, 3))
        found = scores_with_intervals(label_sets.statistics(truth, predicted), label_sets.scores)
        assert found["micro_f1_low"] < found["micro_f1"] < found["micro_f1_high"]
        widths.append(found["micro_f1_high"] - found["micro_f1_low"])
    assert widths[1] < widths[0] / 2


def test_one_row_has_scores_without_intervals():
    found = scores_with_intervals(numbers.statistics(np.array([1.0]), np.array([2.0])), numbers.scores)
    assert found["mae"] == 1 and "mae_low" not in found


def test_losses_are_those_of_pytorch_and_transformers():
    logits, labels = torch.randn(6, 4), torch.randint(0, 2, (6, 4)).float()
    objective = LabelSetLoss()
    assert objective.loss_sum(logits, labels) / objective.count(labels) == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, labels).item()
    )
    values, targets = torch.randn(6, 1), torch.randn(6)
    assert SquaredError().loss_sum(values, targets) / 6 == pytest.approx(F.mse_loss(values[:, 0], targets).item())
    scores, positions = torch.randn(5, 7, 2), torch.randint(0, 7, (5, 2))
    starts = cross_entropy_sum(scores[..., 0], positions[:, 0])
    ends = cross_entropy_sum(scores[..., 1], positions[:, 1])
    answer = AnswerLoss()
    assert answer.loss_sum(scores, positions) == pytest.approx((starts + ends).item(), rel=1e-6)
    ignored = torch.full((5, 2), IGNORE_INDEX)
    assert answer.loss_sum(scores, ignored) == 0


def test_the_ordinal_loss_grows_with_the_distance():
    logits = torch.tensor([[4.0, 0.0, 0.0, 0.0]])
    plain = [cross_entropy_sum(logits, torch.tensor([label])).item() for label in range(1, 4)]
    ordered = [RankLoss().loss_sum(logits, torch.tensor([label])).item() for label in range(1, 4)]
    assert plain[0] == pytest.approx(plain[2]) and ordered[0] < ordered[1] < ordered[2]


def test_the_ordinal_optimum_is_the_true_distribution():
    """Both parts are proper scoring rules: the expected loss is least at the frequencies of the labels."""
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3])
    logits = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = RankLoss().loss_sum(logits.expand(8, 4), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert logits.softmax(-1)[0].tolist() == pytest.approx([1 / 8, 2 / 8, 3 / 8, 2 / 8], abs=1e-3)


def test_an_ordinal_prediction_is_the_median():
    task = Ordinal(DataConfig(path="x"), ["low", "mid", "high"])
    assert task.choice(np.array([0.4, 0.2, 0.4])) == 1  # the arg max would be the lowest
    assert task.choice(np.array([0.6, 0.2, 0.2])) == 0 and task.choice(np.array([0.1, 0.2, 0.7])) == 2


def test_the_order_of_labels_is_that_of_the_settings_or_their_numbers():
    rows = [Row("r", "t", target) for target in ("10", "2", "1") * 3]
    task = Ordinal(DataConfig(path="x"))
    task.fit(rows, "x")
    assert task.names == ["1", "2", "10"]
    named = Ordinal(DataConfig(path="x", label_order=["bad", "ok", "good"]))
    named.fit([Row("r", "t", target) for target in ("good", "bad", "ok") * 3], "x")
    assert named.names == ["bad", "ok", "good"]
