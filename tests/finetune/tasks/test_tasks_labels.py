"""Labels of words and answers as token labels and back, through windows, and how pairs become tokens."""

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from finetune.data_config import DataConfig
from finetune.encode import pair_frame
from finetune.tasks.encoder import Encoder, collate, cut
from finetune.tasks.questions import LONGEST_ANSWER, Questions, best_span
from finetune.tasks.task import Row
from finetune.tasks.tokens import Tokens
from mini_llm.engine.batch import IGNORE_INDEX
from mini_llm.model import ModelConfig
from mini_llm.tokenization.load import load_tokenizer
from mini_llm.tokenization.save import save_tokenizer
from tests.foreign_tokenizers import TOKENIZERS, write_tokenizer
from tests.models import decoder, encoder

ALPHABET = [
    "Paris",
    "U.S.",
    "caf\u00e9",
    "\u6f22\u5b57",
    "\U0001f600",
    "x",
    "don't",
    "1815",
    "film",
    "good",
    "(",
    "\u2581",
]
FAMILIES = ["own", "bert", "gpt2", "llama", "qwen3", "modernbert"]


@pytest.fixture(params=FAMILIES)
def tokenizer(request, tiny_tokenizer, tmp_path):
    if request.param == "own":
        return tiny_tokenizer
    write_tokenizer(request.param, tmp_path)
    return load_tokenizer(tmp_path)


def model_config(tokenizer, **changes) -> ModelConfig:
    causal = tokenizer.cls_id is None
    return (decoder if causal else encoder)(vocab_size=tokenizer.vocab_size, **changes)


def text_row(words, tags) -> Row:
    row = Tokens(DataConfig(path="x")).parse({"tokens": words, "tags": tags}, "row 1")
    assert isinstance(row, Row)
    return row


def tagged(seed: int, count: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    words, tags = [draw.choice(ALPHABET) for _ in range(count)], ["O"] * count
    for index in range(count):
        if draw.random() < 0.3:
            tags[index] = f"B-{draw.choice('XY')}"
        elif index and tags[index - 1] != "O" and draw.random() < 0.6:
            tags[index] = f"I-{tags[index - 1][2:]}"
    return words, tags


@pytest.mark.parametrize("length", [16, 24, 200])
def test_word_labels_become_token_labels_and_back(tokenizer, length):
    task = Tokens(DataConfig(path="x"), ["O", "B-X", "I-X", "B-Y", "I-Y"])
    rows = [text_row(*tagged(seed, 30)) for seed in range(5)]
    encoded = Encoder(tokenizer, model_config(tokenizer), length)
    windows = task.windows(rows, encoded)
    assert all(len(window.tokens) <= length for window in windows)
    assert {window.row for window in windows} == set(range(5))
    logits = []
    for window in windows:
        labels = np.where(window.labels == IGNORE_INDEX, 0, window.labels)
        logits.append(20.0 * np.eye(5)[labels])
        # One B- or I- label, then I- labels: a word with several tokens is one entity for any reader.
        for word, place in window.places.items():
            tag = rows[window.row].target[word]
            names = [task.names[label] for label in window.labels[place]]
            assert names == [tag, *[tag.replace("B-", "I-")] * (len(names) - 1)]
        assert sum(place.stop - place.start for place in window.places.values()) == sum(window.labels != IGNORE_INDEX)
    for row, found in zip(rows, task.decode(rows, windows, logits), strict=True):
        # Words of which the tokenizer makes nothing stay outside.
        made = [len(ids) > 0 for ids in encoded.words([row.text[a:b] for a, b in row.words])]
        assert found.tags == [tag if word else "O" for tag, word in zip(row.target, made, strict=True)]
        assert sum(made) > 20


def test_the_tokens_of_words_are_those_of_the_text(tokenizer):
    words = ["what", "a", "warm", "and", "clever", "little", "film"]
    encoded = Encoder(tokenizer, model_config(tokenizer), 200)
    assert np.concatenate(encoded.words(words)).tolist() == list(tokenizer.encode(" ".join(words)))


def test_windows_hold_every_item_once():
    draw = random.Random(0)
    for _ in range(200):
        lengths = [draw.randrange(0, 6) for _ in range(draw.randrange(1, 40))]
        room, overlap = draw.randrange(5, 20), draw.randrange(0, 5)
        found = list(cut(lengths, room, overlap))
        owned = [item for _, _, first, last in found for item in range(first, last)]
        assert owned == list(range(len(lengths)))
        for first, last, own_first, own_last in found:
            assert first <= own_first <= own_last <= last and sum(lengths[first:last]) <= max(room, lengths[first])


def test_spans_of_tokens_are_the_text(tokenizer):
    text = "The caf\u00e9 in  Paris \u6f22\u5b57 cost 1815 \U0001f600 (don't)."
    ((ids, spans),) = tokenizer.encode_spans([text])
    assert ids.tolist() == list(tokenizer.encode(text))
    covered = sorted({i for start, end in spans for i in range(start, end)})
    assert {i for i, character in enumerate(text) if not character.isspace()} <= set(covered)
    assert (spans[:, 0] <= spans[:, 1]).all() and (np.diff(spans[:, 0]) >= 0).all()


@pytest.mark.parametrize("length", [40, 64, 400])
def test_answers_are_found_again_through_windows(tokenizer, length):
    """Logits that point at the labels give back the labelled text and its characters."""
    task = Questions(DataConfig(path="x"))
    context = " ".join(f"w{i} {ALPHABET[i % len(ALPHABET)]}" for i in range(40))
    rows = [
        row
        for answer in ("w0", "w17", "w39 \u6f22\u5b57", "caf\u00e9 w3", "U.S.")
        if (start := context.find(answer)) >= 0
        and isinstance(
            row := task.parse(
                {"context": context, "question": "where?", "answers": {"text": [answer], "answer_start": [start]}},
                "row",
            ),
            Row,
        )
    ]
    assert len(rows) >= 3
    encoded = Encoder(tokenizer, model_config(tokenizer), length)
    windows = task.windows(rows, encoded)
    assert all(len(window.tokens) <= length for window in windows)
    assert len(windows) > len(rows) or length == 400
    logits = []
    for window in windows:
        scores = np.zeros((len(window.tokens), 2))
        scores[window.labels, [0, 1]] = 20.0
        logits.append(scores)
    for row, answer in zip(rows, task.decode(rows, windows, logits), strict=True):
        (true,) = row.target
        assert answer.text == context[answer.start : answer.end] == answer.text.strip()
        if answer.text != true.text:  # a token may hold more than the answer
            assert true.text in answer.text and len(answer.text) < len(true.text) + 12
        assert answer.start <= true.start and answer.end >= true.start + len(true.text)


def test_a_question_without_answer_points_at_the_first_position(tiny_tokenizer):
    task = Questions(DataConfig(path="x"))
    row = task.parse({"context": "a b c", "question": "where?", "answers": []}, "row")
    assert isinstance(row, Row) and "no answer" in task.fit([row, Row("r", "a", (object(),), "q")], "x")[0]
    (window,) = task.windows([row], Encoder(tiny_tokenizer, model_config(tiny_tokenizer), 64))
    assert window.labels.tolist() == [0, 0]
    logits = np.zeros((len(window.tokens), 2))
    logits[0] = 5
    (answer,) = task.decode([row], [window], [logits])
    assert answer.text == "" and answer.start is None and answer.score > 0.9


def test_the_best_span_is_the_best_of_all():
    draw = np.random.default_rng(0)
    for _ in range(50):
        starts, ends = draw.normal(size=(2, 90))
        spans = [(i, j) for i in range(90) for j in range(i, min(90, i + LONGEST_ANSWER))]
        assert best_span(starts, ends) == max(spans, key=lambda span: starts[span[0]] + ends[span[1]])


@pytest.mark.parametrize("family", ["own-masked", "own-causal", *[name for name in TOKENIZERS if name != "t5"]])
@pytest.mark.parametrize("length", [20, 200])
def test_pairs_are_those_of_autotokenizer(family, length, tiny_tokenizer, tmp_path):
    if family.startswith("own"):
        kind = family.removeprefix("own-")
        save_tokenizer(tiny_tokenizer, tmp_path, kind)
        ours, causal = tiny_tokenizer, kind == "causal"
    else:
        write_tokenizer(family, tmp_path)
        ours, causal = load_tokenizer(tmp_path), family in ("gpt2", "llama", "qwen3")
    auto = AutoTokenizer.from_pretrained(tmp_path)
    types = 2 if family == "bert" else 0
    config = (decoder if causal else encoder)(vocab_size=ours.vocab_size, type_vocab_size=types)
    made = Encoder(ours, config, length)
    for first, second in [("what a film", "dull " * 12), ("warm " * 15, "slow"), ("clever " * 9, "little film " * 7)]:
        ids, kinds = made.pair(*ours.encode_batch([first, second]))
        theirs = auto(first, second, truncation=True, max_length=length)
        assert ids.tolist() == theirs["input_ids"]
        assert (kinds is None) == (types == 0)
        if kinds is not None:
            assert kinds.tolist() == theirs["token_type_ids"]
    assert sum(map(len, pair_frame(ours, causal))) == auto.num_special_tokens_to_add(pair=True)


def test_batches_pad_labels_of_tokens_with_ignored_ones(tiny_tokenizer):
    task = Tokens(DataConfig(path="x"), ["O", "B-X", "I-X"])
    rows = [text_row(["film"], ["B-X"]), text_row(["film", "good", "film"], ["O", "B-X", "I-X"])]
    windows = task.windows(rows, Encoder(tiny_tokenizer, model_config(tiny_tokenizer), 64))
    batch = collate(windows, 3, 64, by_token=True)
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORE_INDEX).all()
