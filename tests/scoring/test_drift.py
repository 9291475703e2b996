"""Drift: statistics against scipy and direct sums, false alarms and power on simulated texts, the command."""

import numpy as np
import pytest
import scipy.stats
from scipy.sparse import csr_matrix
from scipy.spatial.distance import jensenshannon

from mini_llm.engine.errors import ConfigError, DataError
from scoring.drifting.features import Features, count_matrix, sample_texts
from scoring.drifting.permutations import (
    draw_groups,
    jensen_shannon,
    judge,
    kolmogorov_smirnov,
    mean_difference,
    mean_discrepancy,
    unknown_share,
)
from scoring.drifting.run import domain_auc, find_drift, judge_all, make_checks
from scoring.subject import load_subject

REFERENCE, NEW = 14, 9


@pytest.fixture
def groups() -> np.ndarray:
    return draw_groups(REFERENCE, NEW, 6, seed=1)


def split(values: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values[group == 0], values[group == 1]


def test_groups_keep_their_sizes_and_begin_with_the_truth(groups):
    assert groups[0].tolist() == [0] * REFERENCE + [1] * NEW
    assert (groups.sum(-1) == NEW).all() and len(np.unique(groups, axis=0)) == 7


@pytest.mark.parametrize("ties", [False, True])
def test_the_distance_of_distributions_is_kolmogorov_smirnov(groups, ties):
    values = np.random.default_rng(0).normal(size=REFERENCE + NEW)
    values = np.round(values) if ties else values
    expected = [scipy.stats.ks_2samp(*split(values, group)).statistic for group in groups]
    assert kolmogorov_smirnov(values, groups) == pytest.approx(expected, abs=1e-6)


def test_the_divergence_of_tokens_is_jensen_shannon(groups):
    counts = np.random.default_rng(0).poisson(1, (REFERENCE + NEW, 6)).astype(np.float32)
    sides = [[part.sum(0) for part in split(counts, group)] for group in groups]
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in sides]
    assert jensen_shannon(csr_matrix(counts), groups) == pytest.approx(expected, abs=1e-6)
    shares = [b[a == 0].sum() / b.sum() for a, b in sides]
    assert unknown_share(csr_matrix(counts), groups) == pytest.approx(shares, abs=1e-6)
    rare = np.eye(REFERENCE + NEW, dtype=np.float32)
    assert unknown_share(csr_matrix(rare), groups) == pytest.approx(1)


def test_the_discrepancy_of_embeddings_is_the_sum_over_pairs(groups):
    vectors = np.random.default_rng(0).normal(size=(REFERENCE + NEW, 3))
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    distances = ((scaled[:, None] - scaled) ** 2).sum(-1)
    kernel = np.exp(-distances / np.median(distances[np.triu_indices(len(vectors), 1)]))
    expected = []
    for group in groups:
        a, b = np.flatnonzero(group == 0), np.flatnonzero(group == 1)
        expected.append(kernel[np.ix_(a, a)].mean() + kernel[np.ix_(b, b)].mean() - 2 * kernel[np.ix_(a, b)].mean())
    assert mean_discrepancy(vectors, groups) == pytest.approx(expected, abs=1e-6)


def test_the_difference_of_means(groups):
    values = np.random.default_rng(0).normal(size=REFERENCE + NEW)
    expected = [abs(a.mean() - b.mean()) for a, b in (split(values, group) for group in groups)]
    assert mean_difference(values, groups) == pytest.approx(expected, abs=1e-6)


def test_the_p_value_counts_the_truth_and_the_threshold_is_the_95th_percentile():
    statistics = np.array([95.5, *range(1, 100)])
    assert judge(statistics).p_value == 5 / 100 and judge(statistics).threshold == np.quantile(range(1, 100), 0.95)
    assert judge(np.zeros(20)).p_value == 1


def simulated(seed: int, effect: float = 0.0) -> Features:
    """Features of 20 texts as a reference and 15 new ones, which differ by `effect`."""
    generator = np.random.default_rng(seed)
    new = np.repeat([0.0, 1.0], [20, 15])
    tokens = generator.multinomial(30, np.full(12, 1 / 12), 20).tolist()
    tilted = np.exp(effect * np.linspace(-0.5, 0.5, 12))
    tokens += generator.multinomial(30, tilted / tilted.sum(), 15).tolist()
    counts = csr_matrix(np.array(tokens, dtype=np.float32))
    lengths = np.round(np.exp(generator.normal(4, 0.5, 35) + 0.3 * effect * new))
    embeddings = (generator.normal(size=(35, 4)) + 0.4 * effect * new[:, None]).astype(np.float32)
    return Features(lengths, counts, counts, embeddings, {"loss": generator.normal(size=35) + 0.5 * effect * new})


def alarms(rows: int, effect: float) -> dict[str, float]:
    """The share of simulations in which each check, and any of them after adjustment, raises an alarm."""
    found: dict[str, list[bool]] = {}
    for seed in range(rows):
        groups = draw_groups(20, 15, 199, seed + 10_000)
        checks = judge_all(make_checks(simulated(seed, effect)), groups, 0.05)
        for row in checks:
            found.setdefault(row["name"], []).append(row["p_value"] <= 0.05)
        found.setdefault("any", []).append(any(row["drift"] for row in checks))
    return {name: float(np.mean(values)) for name, values in found.items()}


@pytest.mark.slow
def test_false_alarms_are_at_most_5_percent():
    found = alarms(1000, 0.0)
    for name in ("length in characters", "embeddings (MMD)", "distribution of tokens", "loss"):
        # The few values of the statistic of Kolmogorov and Smirnov make its test conservative.
        low = 0.02 if name in ("length in characters", "loss") else 0.035
        assert low <= found[name] <= 0.065, name
    assert 0.03 <= found["any"] <= 0.065


def test_power_rises_with_the_change():
    found = [alarms(60, effect)["any"] for effect in (0.0, 0.8, 1.6, 3.0)]
    assert found == sorted(found) and found[0] <= 0.15 and found[-1] > 0.95


def test_a_domain_classifier_tells_changed_embeddings_apart():
    embeddings = np.random.default_rng(0).normal(size=(80, 5))
    assert domain_auc(embeddings, 40, 0) == pytest.approx(0.5, abs=0.2)
    embeddings[40:] += 2
    assert domain_auc(embeddings, 40, 0) > 0.95 and domain_auc(embeddings[:8], 4, 0) is None


def test_texts_are_drawn_at_random_with_their_labels(lab):
    whole = sample_texts(str(lab / "test.jsonl"), "text", "label", 100, 0)
    assert len(whole.documents) == 24 and whole.labels[:2] == ["bird", "road"]
    few = [sample_texts(str(lab / "test.jsonl"), "text", None, 5, seed) for seed in (0, 0, 1)]
    assert few[0].documents == few[1].documents != few[2].documents and few[0].labels is None
    with pytest.raises(DataError, match="at least two"):
        sample_texts(str(lab / "held-out.txt"), "text", None, 5, 0)
    assert count_matrix([["a", "b", "a"], [], ["b"]]).toarray().tolist() == [[2, 1], [0, 0], [0, 1]]


@pytest.mark.parametrize("name", ["gpt", "mlm", "gpt-classifier", "t5"])
def test_every_kind_of_model_finds_upper_case_and_not_the_same_texts(lab, name):
    subject = load_subject(lab / "runs" / name, "cpu")
    files = [str(lab / f"{month}.jsonl") for month in ("january", "february")]
    found = find_drift(subject, *files, permutations=199)
    assert found["drift"] and next(row for row in found["checks"] if row["name"] == "distribution of tokens")["drift"]
    assert not find_drift(subject, files[0], files[0], permutations=199)["drift"]
    about = {row["about"] for row in found["checks"]}
    assert about == {"input"} if name == "t5" else about == {"input", "prediction"}


def test_quality_drifts_where_labels_say_so(lab, tmp_path):
    import json

    subject = load_subject(lab / "runs" / "gpt-classifier", "cpu")
    rows = [json.loads(line) for line in (lab / "test.jsonl").read_text().splitlines()]
    texts = [row["text"] for row in rows]
    from finetune.predict import Classifier

    classifier = Classifier(lab / "runs" / "gpt-classifier")
    names = [classifier.names[i] for i in classifier.probabilities(texts).argmax(-1)]
    other = {"bird": "road", "road": "bird"}
    for file, labels in (("right", names), ("wrong", [other[name] for name in names])):
        lines = (json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True))
        (tmp_path / f"{file}.jsonl").write_text("\n".join(lines))
    found = find_drift(
        subject, str(tmp_path / "right.jsonl"), str(tmp_path / "wrong.jsonl"), label="label", permutations=199
    )
    assert [row["name"] for row in found["checks"] if row["drift"]] == ["accuracy"]
    quality = found["checks"][-1]
    assert (quality["reference"], quality["new"], quality["about"]) == (1, 0, "quality")
    with pytest.raises(ConfigError, match="at least 140"):
        find_drift(subject, *[str(tmp_path / "right.jsonl")] * 2, label="label", permutations=99)
    with pytest.raises(DataError, match="--label"):
        find_drift(load_subject(lab / "runs" / "gpt", "cpu"), "x", "y", label="label")
