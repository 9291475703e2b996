"""Encoder-decoders: sentinels, pairs of texts, the restore task, greedy decoding, whole runs and classifiers."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from finetune.config import FinetuneConfig
from finetune.run import finetune
from generate.config import GenerateConfig
from generate.load import load_generator
from mini_llm.corpus.config import CorpusConfig
from mini_llm.engine.batch import IGNORE_INDEX, BatchSplit
from mini_llm.engine.config import load_config
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.model import Seq2SeqLM, load_model, save_model
from mini_llm.model.decoding import greedy_decode
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer
from mini_llm.tokenization.tokenizer import Tokenizer
from pretrain.config import PairsConfig, PretrainConfig
from pretrain.objectives.pairs import EncodedPairs, PairsObjective
from pretrain.objectives.spans import sentinel_ids
from pretrain.pairs import Pair, load_pairs, set_aside
from pretrain.restore import restore_pairs, sentences, strip
from pretrain.run import pretrain
from pretrain.translation_scores import compare
from tests.families import make_config
from tests.models import randomized
from tokenizer.sample import draw_sample
from tokenizer.train import train_model

ANIMALS = ["dog", "cat", "horse", "cow", "sheep", "goat"]
PLACES = ["field", "house", "garden", "forest", "river", "barn"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 48}


def prose(count: int) -> str:
    """Return `count` lines of three sentences each."""
    lines = []
    for i in range(count):
        a, b, c = ANIMALS[i % 6], PLACES[i // 6 % 6], ANIMALS[i // 36 % 6]
        lines.append(f"The {a} number {i} is in the {b}. Did the {c} see it, or not? Yes, the {c} did see the {a} {i}!")
    return "\n".join(lines)


def settings(steps: int = 60) -> dict:
    return {
        "max_steps": steps,
        "budget": None,
        "global_batch_size": 16,
        "vocab_size": 480,
        "sizes": SIZES,
        "runtime": {"precision": "fp32", "device": "cpu"},
        "tracking": {"wandb": "disabled"},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with text, pairs and runs: t5 on span corruption, then the restore task and a classifier from it."""
    folder = tmp_path_factory.mktemp("seq2seq")
    before = Path.cwd()
    os.chdir(folder)
    try:
        lines = prose(1200).split("\n")
        Path("text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        with open("pairs.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["question", "answer"])
            rows.writerows([f"where is the {a} {i}?", f"{a} {i} in the field"] for i in range(30) for a in ANIMALS)
        with open("labels.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([f"the {a} number {i} is here", a] for i in range(40) for a in ANIMALS[:2])
        corpus = {"sources": "text.jsonl"}
        pretrain(PretrainConfig(model="t5", run="t5", corpus=corpus, **settings()))
        more = {k: v for k, v in settings(30).items() if k not in ("sizes", "vocab_size")}
        pretrain(PretrainConfig(init="runs/t5", run="restore", corpus=corpus, pairs={"task": "restore"}, **more))
        finetuning = {k: v for k, v in more.items() if k != "global_batch_size"}
        finetune(FinetuneConfig(model="runs/t5", data={"path": "labels.csv"}, run="classifier", **finetuning))
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def summary(run: str) -> dict:
    return json.loads(Path("runs", run, "summary.json").read_text())


@pytest.fixture(scope="module")
def sentinel_tokenizer(tmp_path_factory):
    sample = draw_sample(prose(300).split("\n"), 10**6, 0)
    model = train_model(TokenizerConfig(vocab_size=400, sentinels=12), sample)
    return Tokenizer(model, tmp_path_factory.mktemp("tokenizer"))


def test_sentinels_come_after_sep_and_are_never_produced_from_text(sentinel_tokenizer):
    ids = sentinel_ids(sentinel_tokenizer)
    assert ids == list(range(sentinel_tokenizer.sep_id + 1, sentinel_tokenizer.sep_id + 13))
    assert set(ids) <= sentinel_tokenizer.special_ids
    text = "The <extra_id_0> is <extra_id_11>."
    assert not set(sentinel_tokenizer.encode(text)) & set(ids)
    assert sentinel_tokenizer.decode(sentinel_tokenizer.encode(text)) == text
    plain = train_model(TokenizerConfig(vocab_size=400), draw_sample(prose(300).split("\n"), 10**6, 0))
    assert sentinel_ids(Tokenizer(plain, ".")) == []


def test_auto_tokenizer_gives_the_same_ids_and_an_end_token(sentinel_tokenizer, tmp_path):
    save_tokenizer(sentinel_tokenizer, tmp_path, "seq2seq", 48)
    theirs = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    for text in ("The dog number 7.", "  a <extra_id_3> b</s>", "caf\u00e9 \u65e5\u672c", ""):
        assert theirs(text).input_ids == [*sentinel_tokenizer.encode(text), sentinel_tokenizer.eos_id]
    marked = AutoTokenizer.from_pretrained(tmp_path)("The <extra_id_3> dog").input_ids
    assert sentinel_ids(sentinel_tokenizer)[3] in marked


def test_tokenizers_with_and_without_sentinels_have_separate_directories():
    assert TokenizerConfig().directory != TokenizerConfig(sentinels=100).directory


def test_restore_uses_sentences_of_prose():
    text = "I said: no! <br />It's Ann's dog, isn't it?\nimport os\nToo short.\nthis has no capital at all here.\n"
    text += "Return the value of `name` or None.\nThe last one, here, is (just) fine.  But a = b + c is not."
    assert list(sentences(text)) == ["It's Ann's dog, isn't it?", "The last one, here, is (just) fine."]
    assert strip("It's Ann's dog-house, isn't it?") == "its anns dog house isnt it"


@pytest.mark.slow
def test_restore_never_trains_on_its_evaluation_pairs(inside):
    pairs = load_pairs(PairsConfig(task="restore"), CorpusConfig(sources="text.jsonl"), 0)
    targets = {pair.target for pair in pairs.train}
    assert len(pairs.train) > 1000 and len(pairs.validation) > 10
    assert not any(pair.target in targets for pair in pairs.validation)
    assert all(pair.source == strip(pair.target) for pair in pairs.train)
    Path("code.txt").write_text("x = 1\n" * 50)
    with pytest.raises(DataError, match="no sentence"):
        restore_pairs(CorpusConfig(sources="code.txt"), "train")


def test_pairs_are_set_aside_by_their_source():
    pairs = [Pair(str(i % 50), str(i)) for i in range(100)]
    train, validation = set_aside(pairs, 0.1, 0)
    assert len(validation) == 10 and sorted(train + validation) == sorted(pairs)
    assert not {pair.source for pair in train} & {pair.source for pair in validation}
    assert set_aside(list(reversed(pairs)), 0.1, 0)[1] == list(reversed(validation))
    assert set_aside(pairs, 0.1, 1)[1] != validation


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("a,b\n1,2\n", [], "no column 'source'.*'a', 'b'.*pairs.source=COLUMN"),
        ("source,target\nx,\ny,z\n", [], "empty in 1 of 2 rows: 1.*on_null=skip"),
        ("source,target\nx,y\n", [], "too few"),
        ("source,target\n", [], "no pairs"),
        ("source,target\nx,y\nz,w\n", ["pairs.validation=given.csv"], r"is part of the training data \(given.csv\)"),
    ],
)
def test_invalid_pairs_are_named(content, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("given.csv").write_text(content)
    config = load_config(PretrainConfig, None, ["model=t5", "pairs.path=given.csv", *arguments])
    with pytest.raises(DataError, match=message):
        load_pairs(config.pairs, config.corpus, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pairs.scored=5"], "pairs.path=FILE or pairs.task=restore"),
        (["pairs.task=restore", "pairs.path=x.csv"], "either"),
        (["pairs.task=restore", "pairs.test=x.csv"], "own splits"),
        (["init=runs/t5", "model=t5"], "leave model out"),
        (["init=runs/t5", "tokenizer=runs/tokenizer"], "leave tokenizer out"),
    ],
)
def test_contradictions_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        load_config(PretrainConfig, None, arguments)


def test_a_batch_of_pairs():
    pairs = EncodedPairs([np.array([10, 11, 2]), np.array([12, 2])], [np.array([13, 2]), np.arange(20, 30)])
    objective = PairsObjective(pairs, 8, 0, pad_id=3, start_id=3)
    (batch,) = objective.evaluation(pairs, 2)
    # The longest pair is the first.
    assert batch["input_ids"].tolist() == [[12, 2, 3, 3, 3, 3, 3, 3], [10, 11, 2, 3, 3, 3, 3, 3]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3]
    assert batch["labels"].tolist() == [[*range(20, 27), 29], [13, 2] + [IGNORE_INDEX] * 6]
    assert batch["decoder_input_ids"].tolist() == [[3, *range(20, 27)], [3, 13, 2, 3, 3, 3, 3, 3]]


@pytest.mark.parametrize(("micro", "ranks"), [(8, 1), (2, 1), (4, 2)])
def test_ranks_share_the_same_pairs(micro, ranks):
    sides = [np.arange(7, 9 + i % 5) for i in range(40)]
    pairs = EncodedPairs([np.append(ids, i + 100) for i, ids in enumerate(sides)], sides)
    seen = []
    for rank in range(ranks):
        objective = PairsObjective(pairs, 16, 0, 3, 3)
        seen += [
            batch["input_ids"]
            for step in range(5)
            for batch in objective.batches(step, BatchSplit(8, micro, ranks, rank))
        ]
    assert len(seen) == 5 * 8 // micro
    ends = sorted(i for ids in seen for i in ids.flatten().tolist() if i >= 100)
    assert ends == list(range(100, 140))


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_greedy_decoding_of_a_batch_equals_transformers(family, tmp_path):
    config = make_config(family, "seq2seq", 0)
    ours = randomized(Seq2SeqLM(config))
    save_model(ours, tmp_path)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(7, 64, (5, 14), generator=generator)
    mask = (torch.arange(14) < torch.tensor([14, 3, 9, 1, 12])[:, None]).long()
    ids = ids.where(mask.bool(), 3)
    expected = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12)
    found = greedy_decode(ours, ids, mask, 12)
    for row, target in zip(found, expected[:, 1:].tolist(), strict=True):
        assert row == (target[: target.index(2)] if 2 in target else target)


@pytest.mark.parametrize("family", ["t5", "marian"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_generate_equals_transformers(family, penalty, sentinel_tokenizer, tmp_path):
    config = make_config(family, "seq2seq", 0, vocab_size=sentinel_tokenizer.vocab_size)
    save_model(randomized(Seq2SeqLM(config)), tmp_path)
    save_tokenizer(sentinel_tokenizer, tmp_path, "seq2seq", 48)
    generator = load_generator(
        tmp_path, GenerateConfig(temperature=0, max_new_tokens=15, repetition_penalty=penalty), device="cpu"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for prompt in ("The dog number 12", "", "see it, or not?"):
        sample = generator.sample(prompt)
        text = "".join(generator.stream(sample))
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert ids[0].tolist() == sample.prompt_ids
        output = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=15,
            suppress_tokens=generator.suppressed_ids,
            repetition_penalty=penalty,
        )[0, 1:]
        assert output.tolist() == sample.ids
        assert text == sample.text == sentinel_tokenizer.decode(sample.ids)
        again = generator.sample(prompt)
        assert "".join(generator.stream(again)) == text


def test_a_prompt_longer_than_the_context_keeps_its_beginning_and_end_token(sentinel_tokenizer, tmp_path):
    config = make_config("t5", "seq2seq", 0, vocab_size=sentinel_tokenizer.vocab_size)
    save_model(randomized(Seq2SeqLM(config)), tmp_path)
    save_tokenizer(sentinel_tokenizer, tmp_path, "seq2seq", 48)
    generator = load_generator(tmp_path, GenerateConfig(), device="cpu")
    sample = generator.sample("dog " * 100)
    assert len(sample.prompt_ids) == 48 and sample.prompt_ids[-1] == 2 and sample.prompt_tokens_dropped > 50


def test_scores_of_equal_and_of_different_texts():
    texts = ["The dog is here now.", "It is not in the house, is it?"]
    assert compare(texts, texts) == {"bleu": pytest.approx(100), "chrf": pytest.approx(100), "exact": 100}
    assert compare(["x", "y"], texts)["bleu"] < 5


@pytest.mark.slow
def test_span_corruption_learns_and_is_a_t5_directory(inside):
    found = summary("t5")
    assert found["objective"] == "span corruption" and found["val/loss"] < found["unigram_loss"]
    theirs = AutoModelForSeq2SeqLM.from_pretrained("runs/t5/model").eval()
    assert theirs.config.model_type == "t5" and theirs.config.decoder_start_token_id == theirs.config.pad_token_id
    ours, ids = load_model("runs/t5/model"), torch.randint(7, 400, (2, 9))
    with torch.no_grad():
        assert (ours(ids, ids) - theirs(input_ids=ids, decoder_input_ids=ids).logits).abs().max() < 1e-4
    assert len(sentinel_ids(load_tokenizer("runs/t5/model"))) == 100


@pytest.mark.slow
def test_continuing_from_a_run_keeps_its_sizes_and_scores_the_pairs(inside):
    found = summary("restore")
    assert found["objective"] == "text to text"
    assert {"val/bleu", "val/chrf", "val/copy_bleu", "val/copy_chrf", "val/exact"} <= set(found)
    one, other = (load_model(f"runs/{run}/model") for run in ("t5", "restore"))
    assert one.config == other.config
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    rows = json.loads(Path("runs/restore/tables/pairs.json").read_text())
    assert "source" in json.dumps(rows)


@pytest.mark.slow
def test_a_task_has_its_own_tokenizer_beside_that_of_its_corpus(inside):
    config = {**settings(2), "vocab_size": 420, "corpus": {"sources": "text.jsonl"}, "pairs": {"task": "restore"}}
    pretrain(PretrainConfig(model="transformer", run="beside", **config))
    found = {name: load_tokenizer(f"runs/{name}/model").vocab_size for name in ("t5", "beside")}
    assert found == {"t5": 480, "beside": 420}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sizes": {"hidden_size": 64}}, ConfigError, "sizes.hidden_size=64, but runs/t5 has 32"),
        ({"init": "runs/none"}, CheckpointError, "no model to continue from"),
    ],
)
def test_an_init_that_contradicts_or_is_missing_is_an_error(inside, changes, error, message):
    base = {k: v for k, v in settings(5).items() if k not in ("sizes", "vocab_size")}
    config = PretrainConfig(
        **{"init": "runs/t5", "run": "wrong", "corpus": {"sources": "text.jsonl"}, **base, **changes}
    )
    with pytest.raises(error, match=message):
        pretrain(config)


@pytest.mark.slow
def test_pairs_need_an_encoder_decoder(inside):
    with pytest.raises(ConfigError, match="encoder-decoder"):
        pretrain(PretrainConfig(model="gpt", run="no", pairs={"path": "pairs.csv"}, **settings(2)))


@pytest.mark.slow
def test_pairs_of_a_table_are_learned(inside):
    """The tokenizer covers both columns, the run is named after the table, and the loss is far below chance."""
    config = PretrainConfig(
        model="transformer", pairs={"path": "pairs.csv", "source": "question", "target": "answer"}, **settings(80)
    )
    assert config.run_name == "transformer-pairs"
    scores = pretrain(config)
    assert scores["val/loss"] < 2.0 and "val/bleu" in scores
    assert AutoModelForSeq2SeqLM.from_pretrained("runs/transformer-pairs/model").config.model_type == "marian"


@pytest.mark.slow
def test_an_encoder_decoder_becomes_a_classifier(inside):
    found = summary("classifier")
    assert found["labels"] == ["cat", "dog"]
    theirs = AutoModelForSequenceClassification.from_pretrained("runs/classifier/model").eval()
    assert type(theirs).__name__ == "T5ForSequenceClassification"
    tokenizer = AutoTokenizer.from_pretrained("runs/classifier/model", split_special_tokens=True)
    from finetune.predict import Classifier

    with torch.no_grad():
        expected = theirs(**tokenizer("the dog number 3", return_tensors="pt")).logits.softmax(-1)
    found = Classifier(Path("runs/classifier/model")).probabilities(["the dog number 3"])
    assert np.abs(found - expected.numpy()).max() < 1e-5
