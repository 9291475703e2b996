"""ROUGE, BLEU and chrF of pairs, diversity of samples, and passages copied from training data."""

import difflib
import random
from itertools import combinations

import pytest
import sacrebleu

from mini_llm.engine.errors import DataError
from scoring import overlap
from scoring.overlap import Passages
from scoring.pairs import corpus_scores, read_pairs
from scoring.rouge import longest_common_subsequence, rouge
from scoring.samples import describe_samples, diversity
from scoring.score import Request, score, training_texts

# (text, reference, F1 of ROUGE-1, ROUGE-2 and ROUGE-L), computed by rouge-score 0.1.2 without a stemmer.
ROUGES = [
    ("the cat sat on the mat", "The cat lay on a mat.", (2 / 3, 0.2, 2 / 3)),
    ("Hello, world-wide web 3.0!", "hello world wide WEB 30", (8 / 11, 2 / 3, 8 / 11)),
    ("a b a b a b", "b a b a", (0.8, 0.75, 0.8)),
    ("", "something", (0, 0, 0)),
    ("caf\u00e9 au lait", "cafe au lait", (2 / 3, 0.5, 2 / 3)),
    ("one", "one", (1, 0, 1)),
]


@pytest.mark.parametrize(("text", "reference", "expected"), ROUGES)
def test_rouge_equals_rouge_score(text, reference, expected):
    assert list(rouge(text, reference).values()) == pytest.approx([100 * value for value in expected])


def test_the_longest_common_subsequence_is_that_of_all_subsequences():
    generator = random.Random(0)
    for _ in range(60):
        a, b = ([generator.choice("abc") for _ in range(generator.randint(0, 7))] for _ in range(2))
        parts = [{part for n in range(8) for part in combinations(side, n)} for side in (a, b)]
        assert longest_common_subsequence(a, b) == max(map(len, parts[0] & parts[1]))


def test_bleu_and_chrf_are_sacrebleus_and_within_their_intervals():
    texts = ["the old bridge over the river", "three birds", "a quiet road near here"] * 4
    targets = ["an old bridge over a river", "three birds watch", "a quiet road near the grass"] * 4
    found = corpus_scores(texts, targets)
    assert found["bleu"] == sacrebleu.corpus_bleu(texts, [targets]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(texts, [targets]).score
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    assert found["exact"] == 0 and corpus_scores(targets, targets)["exact"] == 100


def test_pairs_are_scored_beside_copying(lab):
    (row,) = score(lab / "runs" / "t5", Request([str(lab / "pairs.jsonl")]))["files"]
    assert row["pairs"] == 6 and {"bleu", "chrf_low", "rougeL", "copy_chrf"} <= set(row)


def test_a_pair_without_a_target_is_named(tmp_path):
    (tmp_path / "p.tsv").write_text("source\ttarget\na\tb\nc\t\n")
    with pytest.raises(DataError, match="row 2: 'source' or 'target' is empty"):
        read_pairs(str(tmp_path / "p.tsv"), "source", "target")


def test_diversity_counts_n_grams():
    # 8 words, 4 different; 2-grams of the first text: ab bc ca ab bc, of the second: dd
    found = diversity(["a b c a b c", "d d"])
    assert found["distinct_1"] == 4 / 8 and found["distinct_2"] == 4 / 6 and found["words"] == 8
    assert found["repetition"] == 0  # abca bcab cabc all differ
    assert diversity(["x x x x x x"])["repetition"] == pytest.approx(2 / 3)
    assert diversity([""])["distinct_1"] == 0
    both = describe_samples(["one two", "three"], ["a b c d e", "f g"])
    assert both["real_texts"]["words"] == 3 == both["samples"]["words"]


@pytest.mark.parametrize("seed", range(24))
def test_the_longest_copied_passage_is_the_one_that_a_direct_search_finds(seed, monkeypatch):
    generator = random.Random(seed)
    monkeypatch.setattr(overlap, "CHUNK", generator.choice([100, 700, 1 << 22]))
    letters = generator.choice(["ab", "abcdefgh \u00e9"])
    training = ["".join(generator.choices(letters, k=generator.randint(0, 600))) for _ in range(6)]
    longest = max(training, key=len)
    cut = longest[generator.randint(0, 200) :][: generator.choice([0, 40, 60, 130, 333])]
    texts = ["".join(generator.choices(letters, k=150)) for _ in range(2)]
    texts[1] = texts[1][:50] + cut + texts[1][50:]
    passages = Passages(texts)
    for document in training:
        passages.add(document)
    found = passages.as_dict()
    matches = [
        difflib.SequenceMatcher(None, a.encode(), b.encode(), autojunk=False).find_longest_match()
        for a in training
        for b in texts
    ]
    best = max(match.size for match in matches)
    assert found["longest_bytes"] == (best if best >= overlap.LEAST else 0)
    assert found["training_bytes"] == sum(len(document.encode()) for document in training)
    if found["longest"]:
        assert found["longest"].strip("\ufffd") in training[found["training_document"] - 1]


def test_the_copied_share_counts_every_byte_once():
    passage = "".join(chr(97 + i % 26) + str(i) for i in range(40))[:80]
    passages = Passages(["x" * 20 + passage + "y" * 100, "nothing"])
    passages.add("before " + passage + " after")
    passages.add(passage)
    assert passages.as_dict()["copied"] == pytest.approx(80 / 207)


def test_a_passage_whose_beginning_occurs_twice_is_found_whole():
    generator = random.Random(1)
    begin, rest = ("".join(generator.choices("abcdefghijklmnop", k=count)) for count in (50, 40))
    passages = Passages([f"{begin} another end", f"some words-{begin}{rest} and more"])
    passages.add(f"it says {begin}{rest}, no more")
    assert passages.as_dict()["longest"] == begin + rest


def test_training_data_is_the_named_file_or_the_corpus_of_the_run(lab, tmp_path, capsys):
    assert training_texts(tmp_path, []) is None
    assert next(training_texts(tmp_path, [str(lab / "held-out.txt")])) == (lab / "held-out.txt").read_text()
    (tmp_path / "config.yaml").write_text(f"corpus:\n  sources:\n  - path: {lab / 'news.jsonl'}\n")
    assert len(list(training_texts(tmp_path, []))) > 10
    assert len(list(training_texts(tmp_path / "model", []))) > 10
    (tmp_path / "config.yaml").write_text("corpus:\n  sources:\n  - path: gone.jsonl\n")
    assert training_texts(tmp_path, []) is None and "gone.jsonl" in capsys.readouterr().err
