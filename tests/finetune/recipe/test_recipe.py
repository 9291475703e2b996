"""The recipe of a classifier: the window, the fitted output layer, and the pool with linear models."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.encode import collate
from finetune.linear import LinearClassifier, fit_tfidf
from finetune.recipe.ensemble import FOLDER, Ensemble, choose_weight, mix, read_ensemble, write_ensemble
from finetune.recipe.head_start import choose_weight_decay, fit_logistic_regression, fit_output_layer
from finetune.recipe.lsa import fit_lsa
from finetune.recipe.texts import epoch, labelled_copies, load_texts
from finetune.recipe.window import choose_length
from finetune.recipe.words import fit_tfidf_features
from finetune.scores.calibration import Calibration
from finetune.teacher import Teacher
from mini_llm.engine.errors import CheckpointError
from mini_llm.model import ModelConfig, SequenceClassifier


class Characters:
    """One token per character."""

    def encode_batch(self, texts):
        return [list(range(len(text))) for text in texts]


WORDS = {0: ["good", "fine", "great", "warm"], 1: ["bad", "poor", "cold", "dull"]}


def documents(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    draw = random.Random(seed)
    labels = [draw.randrange(2) for _ in range(count)]
    common = [f"word{i}" for i in range(40)]
    return [
        " ".join(draw.choice(WORDS[y] if draw.random() < 0.3 else common) for _ in range(20)) for y in labels
    ], np.array(labels)


def model(head: str = "transform", **more) -> SequenceClassifier:
    torch.manual_seed(0)
    return SequenceClassifier(
        ModelConfig(
            causal=False,
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            pad_token_id=0,
            id2label={0: "a", 1: "b", 2: "c"},
            classifier_head=head,
            classifier_pooling="mean",
            init="normal",
            **more,
        )
    )


def rows(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Rows in which the label's token stands among others."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, count)
    return [np.concatenate([draw.integers(10, 60, draw.integers(3, 9)), [label + 1] * 3]) for label in labels], labels


@pytest.mark.parametrize("head", ["transform", "linear"])
@pytest.mark.parametrize("soft", [False, True])
def test_the_fitted_output_layer_knows_more_than_a_random_one(head, soft):
    tokens, labels = rows(200)
    answers = 0.8 * np.eye(3, dtype=np.float32)[labels] + np.float32(0.2 / 3) if soft else labels
    classifier = model(head, dropout=0.5)
    before = {name: p.clone() for name, p in classifier.named_parameters()}

    def accuracy() -> float:
        batch = collate(tokens, None, 0, 32)
        with torch.no_grad():
            found = classifier.eval()(batch["input_ids"], batch["attention_mask"])
        return float((found.argmax(-1).numpy() == labels).mean())

    random_accuracy = accuracy()
    classifier.train()
    note, *_ = fit_output_layer(classifier, tokens, answers, 0, 32, None, 0)
    assert "200 texts" in note and classifier.training
    assert accuracy() > max(0.6, random_accuracy + 0.15)
    changed = {name for name, p in classifier.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= {"score.weight", "classifier.weight", "classifier.bias"}, "only the output layer is fitted"


def test_the_fit_is_the_same_each_time_and_needs_texts():
    tokens, labels = rows(100)
    one, other = model(), model()
    for each in (one, other):
        fit_output_layer(each, tokens, labels, 0, 32, 5.0, 1)
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert fit_output_layer(model(), tokens[:5], labels[:5], 0, 32, None, 0) is None


def test_logistic_regression_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    features = torch.randn(80, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 3 + 1
    labels = (features[:, 0] + features[:, 1] > 2).long()
    weight, bias = fit_logistic_regression(features, torch.eye(2)[labels], with_bias=True, weight_decay=1.0)
    scale = features.std(0, unbiased=False)
    standardized = ((features - features.mean(0)) / scale).numpy()
    # Two rows of weights w and -w have twice the penalty of their difference 2w in one row, so C is halved.
    reference = LogisticRegression(C=0.5 * 4, max_iter=1000).fit(standardized, labels.numpy())
    ours = ((weight[1] - weight[0]) * scale).numpy()
    found = torch.nn.functional.linear(features, weight, bias).softmax(-1)[:, 1].numpy()
    np.testing.assert_allclose(found, reference.predict_proba(standardized)[:, 1], atol=0.05)
    assert np.corrcoef(ours, reference.coef_[0])[0, 1] > 0.99


def test_few_texts_with_many_features_are_fitted_with_more_weight_decay():
    draw = torch.Generator().manual_seed(0)
    noise, labels = torch.randn(80, 64, generator=draw), torch.randint(0, 2, (80,), generator=draw)
    assert choose_weight_decay(noise, torch.eye(2)[labels], True)[0] > 10
    told = torch.cat([noise, 5 * torch.eye(2)[labels]], 1)
    assert choose_weight_decay(told, torch.eye(2)[labels], True)[0] <= 10


def test_the_fit_does_not_import_the_compiler():
    code = "import sys, torch; from finetune.recipe.head_start import fit_logistic_regression as fit; "
    code += "fit(torch.randn(9, 2), torch.eye(3).repeat(3, 1), True, 1.0); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_the_window_covers_long_texts_only_where_positions_have_no_weights():
    tokenizer = Characters()
    rotary, learned = ({"model_type": name, "max_position_embeddings": 128} for name in ("modernbert", "bert"))
    long, short = ["x" * 300] * 20, ["x" * 20] * 20
    assert choose_length(FinetuneConfig(), rotary, tokenizer, long)[0] == 320
    assert choose_length(FinetuneConfig(), rotary, tokenizer, short) == (None, None)
    assert choose_length(FinetuneConfig(), learned, tokenizer, long) == (None, None)
    assert choose_length(FinetuneConfig(), rotary, tokenizer, ["x" * 9000] * 20)[0] == 1024
    assert choose_length(FinetuneConfig(pooling="cls"), rotary, tokenizer, ["x" * 9000] * 20)[0] == 512
    given = FinetuneConfig(data={"max_length": 64})
    assert choose_length(given, rotary, tokenizer, long) == (64, None)


@pytest.mark.parametrize("lsa", [False, True])
def test_an_ensemble_is_read_as_it_was_written(lsa, tmp_path):
    texts, labels = documents(150, 0)
    unlabelled, _ = documents(1200, 1)
    member = fit_lsa(texts, labels, 2, unlabelled) if lsa else fit_tfidf(texts, labels, 2)
    assert member is not None
    transformer = np.random.default_rng(0).dirichlet([1, 1], 50)
    unseen, _ = documents(50, 2)
    ensemble = Ensemble([member], 0.4, Calibration(1.5, examples=50))
    expected = ensemble.pool(transformer, unseen)
    np.testing.assert_allclose(expected, mix(transformer, member.probabilities(unseen), 0.4))
    assert read_ensemble(tmp_path) is None
    write_ensemble(tmp_path, ensemble)
    found = read_ensemble(tmp_path)
    assert found is not None and (found.weight, found.calibration.temperature) == (0.4, 1.5)
    np.testing.assert_allclose(found.pool(transformer, unseen), expected, atol=1e-4)  # stored in fp32
    (tmp_path / FOLDER / "0" / "linear.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"damaged.*Delete .*linear"):
        read_ensemble(tmp_path)


def test_validation_chooses_the_weight():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 400)

    def guess(noise: float) -> np.ndarray:
        logits = (2 * labels - 1) + draw.normal(0, noise, 400)
        return np.stack([1 / (1 + np.exp(2 * logits)), 1 / (1 + np.exp(-2 * logits))], 1)

    good, poor = guess(0.8), guess(6.0)
    assert choose_weight(good, poor, labels) < 0.2 and choose_weight(poor, good, labels) > 0.8
    twin = choose_weight(good, guess(0.8), labels)
    assert 0.3 < twin < 0.7, "two independent guesses of equal quality share the weight"
    assert choose_weight(good[:10], poor[:10], labels[:10]) == 0.5


def pretrained_run(folder, documents_) -> None:
    """What is beside a pretrained model: the configuration that names its corpus."""
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents_))
    corpus = {"sources": [{"path": str(folder / "corpus.jsonl")}]}
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(json.dumps({"corpus": corpus}))


@pytest.mark.parametrize("leak", [False, True])
def test_the_pretraining_corpus_is_the_unlabelled_text_unless_it_holds_the_test(tmp_path, leak):
    rows_ = [
        {"text": f"{text} number {i}", "label": str(y)}
        for i, (text, y) in enumerate(zip(*documents(60, 3), strict=True))
    ]
    for name, part in (("train", rows_[:40]), ("test", rows_[40:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    others, _ = documents(30, 4)
    pretrained_run(tmp_path, [*others, *(row["text"] for row in rows_[40:] if leak)])
    data = {"path": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    config = FinetuneConfig(model=str(tmp_path / "run"), data=data)
    splits = load_texts(config)
    assert splits.unlabelled == ([] if leak else others)
    assert any("so it is not read" in note for note in splits.notes) == leak
    never = config.model_copy(update={"data": config.data.model_copy(update={"pretraining_text": "none"})})
    assert load_texts(never).unlabelled == []
    tests = [row["text"] for row in rows_[40:]]
    assert not set(tests) & set(splits.unlabelled)


@pytest.mark.parametrize(
    "texts", [[f"name{i}" for i in range(2100)], ["".join(chr(0x4E00 + i + k) for k in range(9)) for i in range(2100)]]
)
def test_texts_without_common_words_have_a_linear_model(texts):
    labels = np.arange(len(texts)) % 2
    assert fit_tfidf(texts, labels, 2).probabilities(texts[:3]).shape == (3, 2)
    fit_lsa(texts, labels, 2, ["one", "two"])


def test_characters_are_the_words_of_scripts_without_spaces(tmp_path):
    draw = random.Random(0)
    film, filler = "\u5f88\u597d\u5f88\u5dee", [chr(0x4E10 + i) for i in range(300)]
    labels = np.array([i % 2 for i in range(120)])
    texts = ["".join(draw.choices(filler, k=9)) + film[2 * y : 2 * y + 2] + draw.choice(filler) for y in labels]
    model = fit_tfidf(texts, labels, 2)
    assert model.log_loss < 0.3
    model.save(tmp_path)
    found = LinearClassifier.load(tmp_path)
    assert found is not None
    np.testing.assert_allclose(found.probabilities(texts), model.probabilities(texts), atol=1e-5)
    # A file of an older version has words that are whole sentences, and is read so.
    settings = json.loads((tmp_path / "linear.json").read_text())
    del settings["splits_unspaced"]
    (tmp_path / "linear.json").write_text(json.dumps(settings))
    old = LinearClassifier.load(tmp_path)
    assert old is not None and not np.allclose(old.probabilities(texts), model.probabilities(texts), atol=1e-2)
    vectorizer, _ = fit_tfidf_features(["an old film", "two words, a b"])
    assert vectorizer.build_analyzer()("an x \u5f88\u597d22") == [
        "an",
        "\u5f88",
        "\u597d",
        "22",
        *("an \u5f88", "\u5f88 \u597d", "\u597d 22"),
    ]


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "mixed", "knows", "copies"),
    [
        (100, 0, 0, False, 1),
        (100, 60, 0, False, 1),
        (100, 250, 0, False, 2),
        (100, 50_000, 0, False, 8),
        (100, 50_000, 0, True, 1),
        (100, 50, 350, False, 4),
        (100, 50, 350, True, 4),
    ],
)
def test_labelled_texts_are_read_more_often_where_the_teacher_has_not_learned_from_the_others(
    labelled, unlabelled, mixed, knows, copies
):
    member = LinearClassifier.__new__(LinearClassifier)
    member.components = np.zeros((2, 2)) if knows else None
    teacher = Teacher([member], np.zeros((labelled, 2)), np.zeros((unlabelled, 2)), 0.0, "")
    assert labelled_copies(labelled, unlabelled, mixed, teacher) == copies
    counts = np.bincount(epoch(labelled, unlabelled + mixed, copies))
    assert counts[:labelled].tolist() == [copies] * labelled and counts[labelled:].tolist() == [1] * (
        unlabelled + mixed
    )


def test_without_a_teacher_every_text_is_read_once_an_epoch():
    assert labelled_copies(10, 0, 0, None) == 1
