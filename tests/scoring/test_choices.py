"""Multiple choice by likelihood: lm-eval's rules, computed directly with transformers."""

import json

import pytest
import torch
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from mini_llm.engine.errors import ConfigError, DataError
from scoring.choices import Question, answer, encode_choice, make_prompts, read_questions, read_shots, score_choices
from scoring.subject import load_subject


@pytest.fixture(scope="module")
def subject(lab):
    return load_subject(lab / "runs" / "gpt", "cpu")


@pytest.fixture(scope="module")
def peer(lab):
    directory = lab / "runs" / "gpt"
    return AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory).eval()


def lm_eval_likelihood(peer, context: str, continuation: str, longest: int) -> float:
    """lm-eval 0.4.13, TemplateLM._encode_pair and HFLM._loglikelihood_tokens, with Hugging Face's tokenizer."""
    tokenizer, model = peer
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    if context:
        whole, before = tokenizer.encode(context + continuation), tokenizer.encode(context)
        continuation_ids = whole[len(before) :]
    else:
        before, continuation_ids = (
            [tokenizer.bos_token_id],
            tokenizer.encode(continuation, add_special_tokens=False),
        )
    ids = (before + continuation_ids)[-(longest + 1) :]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    logs = logits.log_softmax(-1)[-len(continuation_ids) :]
    return logs[torch.arange(len(continuation_ids)), torch.tensor(continuation_ids)].sum().item()


@pytest.mark.parametrize("question", ["the river", "the river \n ", "", "birds watch the grass " * 6])
@pytest.mark.parametrize("shots", [0, 1])
def test_likelihoods_are_those_of_lm_eval(subject, peer, question, shots):
    solved = [Question("a road", ("old", "tall"), 1, "")][:shots]
    row = Question(question, ("bridge", "tall grass near"), 0, "")
    (prompt,) = make_prompts([row], "{question}", solved)
    assert prompt == ("a road tall\n\n" if shots else "") + question
    (found,) = answer(subject, [row], [prompt], 8192).log_likelihoods
    expected = [lm_eval_likelihood(peer, prompt, f" {choice}", 32) for choice in row.choices]
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_choice_longer_than_the_context_is_cut(subject):
    window = encode_choice(subject, "the river", "tall grass near a quiet road " * 20)
    assert len(window.inputs) == 32 and window.scored <= 32


def test_accuracy_is_that_of_the_likelihoods_plain_and_per_character(lab, subject):
    questions = read_questions(lab / "questions.jsonl")
    found = answer(subject, questions, make_prompts(questions, "{question}", []), 8192)
    plain, normalized = 0, 0
    for question, values in zip(questions, found.log_likelihoods, strict=True):
        plain += values.argmax() == question.answer
        normalized += (values / [len(choice) for choice in question.choices]).argmax() == question.answer
    scores = score_choices(subject, lab / "questions.jsonl", "{question}", [], None, 8192)
    assert scores["accuracy"] == plain / 9 and scores["accuracy_normalized"] == normalized / 9
    interval = binomtest(int(plain), 9).proportion_ci(method="wilson")
    assert scores["accuracy_low"] == pytest.approx(interval.low) and scores["chance"] == 0.25
    few = score_choices(subject, lab / "questions.jsonl", "Q: {question}\nA:", questions[:2], 3, 8192)
    assert few["questions"] == 3 and few["shots"] == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "row 1: 'answer' is 2; .* from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "'answer' is 'c'"),
        ({"question": "q", "choices": ["a", "a"], "answer": "a"}, "'answer' is 'a'"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "'answer' is True"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "'choices' must be a list of two"),
        ({"question": "q", "choices": "ab", "answer": 0}, "'choices' must be a list of two"),
        ({"question": None, "choices": ["a", "b"], "answer": 0}, "'question' is None"),
        ({"question": "q", "choices": ["a", "b"]}, "answer"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, message):
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_the_answer_may_be_the_text_of_a_choice(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "q", "choices": ["a", "b"], "answer": "b"}\n')
    (question,) = read_questions(tmp_path / "q.jsonl")
    assert question.answer == 1


def test_shots_come_from_another_file(lab, tmp_path):
    assert len(read_shots(lab / "solved.jsonl", None, lab / "questions.jsonl")) == 3
    with pytest.raises(ConfigError, match="given away"):
        read_shots(lab / "solved.jsonl", 1, lab / "solved.jsonl")
    with pytest.raises(ConfigError, match="--shots-file"):
        read_shots(None, 2, lab / "solved.jsonl")
    with pytest.raises(ConfigError, match="must contain"):
        make_prompts([], "no question", [])
