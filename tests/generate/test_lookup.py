"""Prompt lookup: guesses repeat earlier text, and checking them changes no text and no distribution."""

from functools import cache

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch import nn

import generate.lookup
from generate.config import GenerateConfig
from generate.context import Window
from generate.decode import TextGenerator
from generate.load import load_generator
from generate.lookup import MEMORY, NGRAMS, Lookup
from mini_llm.engine.kernels.decode import CompiledStep, round_to_int8
from mini_llm.model import KVCache
from tests.byte_tokenizer import FIRST_BYTE, VOCABULARY, ByteTokenizer
from tests.models import CONTEXT, tiny_config, tiny_model
from tests.other_models import save_model as save_other

LONG = 96
SETTINGS = {
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.3, "top_p": 0.9, "logprobs": True},
    "sampled": {"temperature": 1.0, "top_p": 1.0},
    "controlled": {"temperature": 0.0, "frequency_penalty": 0.1, "min_new_tokens": 40, "logit_bias": {"e": 2.0}},
    "stopped": {"temperature": 0.0, "stop": ["\u00e9\u00e9"]},
}
PROMPTS = ["one two one two one", "abababab", "def f(x):\n    return f(x)\n\ndef f(x):", "x"]


@pytest.fixture
def eager(monkeypatch):
    """Always guess, so that many guesses are wrong."""
    monkeypatch.setattr(generate.lookup, "WORTH", 0.0)


def guesses(text, count=4, then=""):
    """The guess after `text`, after `then` was appended to it."""
    lookup = Lookup(text.encode(), count)
    for token in then.encode():
        lookup.push(token)
    return bytes(lookup.guess()).decode()


def test_a_guess_is_what_followed_the_same_tokens_last_time():
    assert guesses("red fox. blue fox! red f", 3) == "ox."
    assert guesses("axyz bxyq xy", 1) == "q", "the last place counts"
    assert guesses("axyz bxyq axy", 1) == "z", "three tokens come before two"
    assert guesses("abcde") == guesses("") == guesses("a") == ""
    assert guesses("xyxyxy", 5) == "xyxyx", "a repetition goes on"
    assert guesses("aaaa", 3) == "aaa"


def test_after_many_wrong_guesses_there_is_none_until_the_text_repeats_itself():
    # The same two tokens are followed by another one each time.
    wrong = bytes(byte for other in range(48, 48 + 4 * MEMORY) for byte in (*b"ab", other))
    assert guesses(wrong.decode() + "ab") == ""
    # Guesses that were not checked count too, so a repetition is found again.
    assert guesses(wrong.decode(), then=20 * "xyz ") == "xyz "


def generator(compiled, name, lookup, max_position_embeddings=LONG):
    model = tiny_model(max_position_embeddings=max_position_embeddings)
    step = CompiledStep(model) if compiled else None
    config = GenerateConfig(max_new_tokens=50, lookup=lookup, **SETTINGS[name])
    return TextGenerator(model, ByteTokenizer(), config, step=step)


@cache
def plain(prompt, name, context):
    """A text without lookup."""
    one = generator(True, name, 0, context)
    sample = one.sample(prompt)
    list(one.stream(sample))
    return sample


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("compiled", "lookup", "context"), [(True, 1, LONG), (True, 6, LONG), (True, 6, CONTEXT), (False, 3, LONG)]
)
def test_a_text_is_the_same_with_lookup(compiled, lookup, name, context, eager):
    one = generator(compiled, name, lookup, context)
    samples = [one.sample(prompt) for prompt in PROMPTS]
    for sample in one.write(samples, rows=2):
        other = plain(sample.prompt, name, context)
        assert sample.ids == other.ids and sample.text == other.text
        assert (sample.finish_reason, sample.window_slides) == (other.finish_reason, other.window_slides)
        if compiled:
            assert sample.logprobs == other.logprobs, "the bits are the same"
    for prompt in PROMPTS[:2]:
        sample = one.sample(prompt)
        assert "".join(one.stream(sample)) == plain(prompt, name, context).text


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("changes", [{}, {"position": "learned"}, {"layer_types": ["sliding_attention"] * 2}])
def test_following_tokens_have_the_bits_of_single_steps(kind, changes):
    if "layer_types" in changes:
        changes = {**changes, "sliding_window": 3}
    model = tiny_model(max_position_embeddings=LONG, **changes)
    if kind == "bf16":
        model.bfloat16()
    elif kind == "int8":
        round_to_int8(model)
    step = CompiledStep(model, kind == "int8")
    caches = [KVCache(model.config, 1, LONG, dtype=model.lm_head.weight.dtype) for _ in range(2)]
    ids = torch.randint(7, 263, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = torch.stack([step([token], [caches[0]])[0] for token in ids])
    found, start = [], 0
    for count in (3, 1, 2, 5, 8, 1, 20):
        found.append(step.follow(ids[start : start + count], caches[1]))
        start += count
        assert caches[1].length == start
    assert torch.equal(torch.cat(found), expected)


@torch.inference_mode()
@pytest.mark.parametrize("compiled", [True, False])
def test_a_wrong_guess_leaves_no_trace(compiled):
    model = tiny_model(max_position_embeddings=LONG)
    step = CompiledStep(model) if compiled else None
    ids = list(range(20, 60))
    one, other = (Window(model, ids[:4], 36, step) for _ in range(2))
    for i, token in enumerate(ids[4:], start=5):
        # The first guesses are right, the others wrong.
        guess = [*ids[i : i + i % 3], 100, 101]
        torch.testing.assert_close(one.append(token, guess), other.append(token), rtol=1e-5, atol=1e-5)
        assert one.ids == other.ids and one.cache.length == len(one.ids)
        if i == 20:
            one = one.copy()
    torch.testing.assert_close(one.restart(), other.restart())
    assert not one.ahead


class MarkovModel(nn.Module):
    """The next token depends on the last one alone, by a matrix of probabilities."""

    def __init__(self, probabilities):
        super().__init__()
        self.config = tiny_config(max_position_embeddings=5000, vocab_size=VOCABULARY)
        self.lm_head = nn.Linear(VOCABULARY, VOCABULARY, bias=False)
        logits = torch.full((VOCABULARY, VOCABULARY), -1e9)
        size = len(probabilities)
        logits[FIRST_BYTE : FIRST_BYTE + size, FIRST_BYTE : FIRST_BYTE + size] = probabilities.clamp(min=1e-9).log()
        self.lm_head.weight.data = logits.T.contiguous()
        self.passes = 0

    def trunk(self, ids, attention_mask, cache):
        self.passes += 1
        cache.length += ids.size(1)
        return nn.functional.one_hot(ids, VOCABULARY).float()

    def predict(self, hidden):
        return self.lm_head(hidden)


def markov_text(probabilities, count, **settings):
    """The tokens of a text, and the number of forward passes that it took."""
    model = MarkovModel(probabilities)
    one = TextGenerator(model, ByteTokenizer(), GenerateConfig(max_new_tokens=count, **settings))
    sample = one.sample("\0")
    list(one.stream(sample))
    assert len(sample.ids) == count
    return sample, model.passes


def test_a_repetition_takes_fewer_passes():
    cycle = torch.eye(3).roll(1, 0)
    sample, passes = markov_text(cycle, 100, temperature=0, lookup=4)
    # One for the prompt, one for each token until two tokens have occurred before, then one for five tokens.
    assert passes <= 1 + 5 + 95 / 5
    other, every = markov_text(cycle, 100, temperature=0)
    assert sample.ids == other.ids and every == 100


def test_tokens_follow_the_distribution_of_the_model(eager):
    """Guesses are right in about half of the cases. A fair sampler fails this for 1 seed in 1,000."""
    probabilities, count = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.1, 0.4], [0.45, 0.45, 0.1]]), 4_000
    sample, passes = markov_text(probabilities, count, temperature=1.0, top_p=1.0, seed=5, lookup=3)
    assert passes < 0.75 * count, "many guesses were right"
    ids = torch.tensor([sample.prompt_ids[-1], *sample.ids]) - FIRST_BYTE
    pairs = (ids[:-1] * 3 + ids[1:]).bincount(minlength=9).view(3, 3)
    for row, expected in zip(pairs, probabilities, strict=True):
        assert chisquare(row, row.sum() * expected).pvalue > 0.001
    # A token is independent of the one before the last.
    for middle in range(3):
        chosen = ids[1:-1] == middle
        triples = (ids[:-2][chosen] * 3 + ids[2:][chosen]).bincount(minlength=9).view(3, 3)
        assert chi2_contingency(triples).pvalue > 0.001


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_models_of_other_projects(kind, tmp_path, eager):
    save_other(kind, tmp_path, "Seq2SeqLM" if kind == "t5" else "CausalLM")
    texts = []
    for lookup in (0, 4):
        config = GenerateConfig(temperature=0, max_new_tokens=20, lookup=lookup, repetition_penalty=0.9)
        one = load_generator(tmp_path, config, "cpu", compiled=False)
        samples = [one.sample(prompt) for prompt in ("what a film what a", "good good good")]
        texts.append([sample.ids for sample in one.write(samples)])
    assert texts[0] == texts[1]


def test_ngrams_are_tried_from_long_to_short():
    assert list(NGRAMS) == sorted(NGRAMS, reverse=True)
