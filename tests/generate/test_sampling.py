"""Sampling: filters equal those of transformers, draws follow the distribution, wrong settings are refused."""

import math

import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process as hf

from generate.config import GenerateConfig
from generate.sampling import (
    Controls,
    add_bias,
    draw,
    filter_scores,
    forbid_repeated_ngrams,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    next_token,
    penalize_repetition,
    penalize_written,
    random_stream,
    scale_temperature,
    suppress,
)
from mini_llm.engine.config import build_config
from mini_llm.engine.errors import ConfigError, NonFiniteError

NOTHING = torch.empty(0, dtype=torch.int64)


def random_logits(seed: int, rows: int = 8, size: int = 50) -> torch.Tensor:
    return 4 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def random_ids(seed: int, rows: int = 8, count: int = 12, size: int = 50) -> torch.Tensor:
    return torch.randint(size, (rows, count), generator=torch.Generator().manual_seed(seed))


def repeated(ids: torch.Tensor) -> torch.Tensor:
    """Rows in which the last tokens have occurred before, once or twice."""
    return torch.cat([ids, ids[:, :3], ids[:, :1], ids[:, :2]], 1)


def on_repeated(processor):
    return lambda ids, scores: processor(repeated(ids), scores)


def ending(ids: torch.Tensor) -> torch.Tensor:
    """Rows of which the first two end with the beginnings of biased sequences."""
    ids = ids.clone()
    ids[0, -1], ids[1, -2:] = 9, torch.tensor([0, 1])
    return ids


BIAS = {(3,): 2.5, (7,): -100.0, (9, 4): 3.0, (0, 1, 2): -7.0}


def assert_same_distribution(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours == -math.inf, theirs == -math.inf)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda s, i: penalize_repetition(s, i, 1.3), hf.RepetitionPenaltyLogitsProcessor(1.3)),
        (lambda s, i: penalize_repetition(s, i, 0.7), hf.RepetitionPenaltyLogitsProcessor(0.7)),
        (lambda s, i: suppress(s, torch.tensor([0, 7, 49])), hf.SuppressTokensLogitsProcessor([0, 7, 49])),
        (lambda s, i: scale_temperature(s, 0.6), hf.TemperatureLogitsWarper(0.6)),
        (lambda s, i: scale_temperature(s, 3.0), hf.TemperatureLogitsWarper(3.0)),
        (lambda s, i: keep_top_k(s, 1), hf.TopKLogitsWarper(1)),
        (lambda s, i: keep_top_k(s, 10), hf.TopKLogitsWarper(10)),
        (lambda s, i: keep_top_k(s, 999), hf.TopKLogitsWarper(999)),
        (lambda s, i: keep_top_p(s, 0.9), hf.TopPLogitsWarper(0.9)),
        (lambda s, i: keep_top_p(s, 0.001), hf.TopPLogitsWarper(0.001)),
        (lambda s, i: keep_min_p(s, 0.05), hf.MinPLogitsWarper(0.05)),
        (lambda s, i: keep_min_p(s, 0.999), hf.MinPLogitsWarper(0.999)),
        (lambda s, i: keep_typical(s, 0.9), hf.TypicalLogitsWarper(0.9)),
        (lambda s, i: keep_typical(s, 0.2), hf.TypicalLogitsWarper(0.2)),
        (lambda s, i: keep_typical(s, 0.999), hf.TypicalLogitsWarper(0.999)),
        *(
            (
                lambda s, i, n=n: forbid_repeated_ngrams(s, repeated(i), n),
                on_repeated(hf.NoRepeatNGramLogitsProcessor(n)),
            )
            for n in (1, 2, 3, 4, 30)
        ),
        (lambda s, i: add_bias(s, ending(i), BIAS), lambda i, s: hf.SequenceBiasLogitsProcessor(BIAS)(ending(i), s)),
    ],
)
def test_filter_equals_transformers(ours, theirs, seed):
    scores, ids = random_logits(seed), random_ids(seed)
    assert_same_distribution(ours(scores, ids), theirs(ids, scores.clone()))


@pytest.mark.parametrize("seed", range(20))
def test_all_filters_in_order_equal_transformers(seed):
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=50, num_key_value_heads=1, head_dim=8, **sizes))
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
    settings |= {"typical_p": 0.8, "min_new_tokens": 4}
    more = {"sequence_bias": BIAS, "no_repeat_ngram_size": 2}
    generation = GenerationConfig(do_sample=True, num_beams=1, suppress_tokens=[1, 2, 3], **settings, **more)
    scores, ids = random_logits(seed), random_ids(seed)
    generation._eos_token_tensor = torch.tensor([5, 6])  # as transformers' generate() sets it
    ids[:, -1] = ids[:, 3]
    scores[:, 5] = scores.amax(-1)
    theirs = model._get_logits_processor(generation, input_ids_seq_length=9, device="cpu")(ids, scores.clone())
    controls = Controls(BIAS, torch.tensor([5, 6]))
    config = GenerateConfig(no_repeat_ngram_size=2, **settings)
    ours = filter_scores(scores, ids, torch.tensor([1, 2, 3]), config, controls, written=3)
    assert_same_distribution(ours, theirs)


@pytest.mark.parametrize("written", [0, 5, 12])
def test_presence_and_frequency_penalties_follow_the_definition_of_openai(written):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c counts the generated tokens, not the prompt's."""
    logits, ids = random_logits(0, rows=1)[0], random_ids(0, rows=1, size=6)[0]
    config = GenerateConfig(presence_penalty=0.7, frequency_penalty=-0.4, temperature=1, top_p=1)
    expected = logits.clone()
    for j in range(50):
        count = ids[12 - written :].tolist().count(j)
        expected[j] += 0.4 * count - 0.7 * (count > 0)
    torch.testing.assert_close(filter_scores(logits, ids, NOTHING, config, written=written), expected)


def test_repetition_penalties_may_be_combined_over_rows():
    scores, ids = random_logits(1), random_ids(1, size=6)
    rows = [penalize_written(s, i, 0.5, 0.25) for s, i in zip(scores, ids, strict=True)]
    assert torch.equal(penalize_written(scores, ids, 0.5, 0.25), torch.stack(rows))


def test_no_token_left_is_an_error_that_names_the_cause():
    config = GenerateConfig(no_repeat_ngram_size=1)
    with pytest.raises(ConfigError, match="leave no token"):
        next_token(torch.zeros(3), torch.tensor([0, 1, 2]), NOTHING, config, random_stream(0, 0))


def test_draws_with_controls_follow_the_distribution_computed_by_hand():
    """5,000 draws; a fair sampler fails this for 1 seed in 1,000."""
    logits, ids = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -2.0, 0.3]), torch.tensor([2, 4, 2])
    config = GenerateConfig(
        presence_penalty=0.5, frequency_penalty=0.4, temperature=1.5, top_p=1, no_repeat_ngram_size=2
    )
    controls, count = Controls({(3,): 1.5, (2, 0): -1.0}, torch.tensor([6])), 5_000
    # 2 was written twice and 4 once; 2 is followed by 4 already; 3 and 0 (after 2) are biased.
    weights = [math.exp(x / 1.5) for x in (0.5 - 1.0, -1.0, 2.0 - 0.5 - 0.8, 1.5, 0, -2.0, 0.3)]
    weights[4] = 0.0
    expected, rng = torch.tensor(weights, dtype=torch.float64) / sum(weights), random_stream(1, 0)
    drawn = [next_token(logits, ids, NOTHING, config, rng, controls, written=3) for _ in range(count)]
    observed = torch.tensor(drawn).bincount(minlength=7)
    assert observed[4] == 0
    some = expected > 0
    assert chisquare(observed[some], count * expected[some] / expected[some].sum()).pvalue > 0.001


def distribution_by_hand(logits, temperature=1.0, top_k=None, top_p=None, min_p=None, typical_p=None):
    """The definition of each paper in plain Python: the probabilities of all tokens."""
    weights = [math.exp(x / temperature) for x in logits]
    chances = [weight / sum(weights) for weight in weights]
    best = sorted(range(len(chances)), key=lambda i: -chances[i])
    surprise = [-math.log(chance) for chance in chances]
    entropy = sum(chance * s for chance, s in zip(chances, surprise, strict=True))
    typical = sorted(best, key=lambda i: abs(surprise[i] - entropy))

    def reaching(order, share):
        kept = []
        while sum(chances[i] for i in kept) < share:
            kept.append(order[len(kept)])
        return kept

    kept = best[:top_k]
    if top_p:
        kept = reaching(best, top_p)
    elif min_p:
        kept = [i for i in best if chances[i] >= min_p * chances[best[0]]]
    elif typical_p:
        kept = reaching(typical, typical_p)
    return [chances[i] / sum(chances[j] for j in kept) if i in kept else 0.0 for i in range(len(chances))]


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}, {"typical_p": 0.5}]
)
def test_draws_of_each_sampler_follow_its_definition(settings):
    """2,000 draws; a fair sampler fails this for 1 seed in 1,000."""
    logits, count = [0.5, -1.0, 2.0, 0.0, 1.0, -2.0, 0.3, 1.4], 2_000
    config, rng = GenerateConfig(**{"temperature": 1.0, "top_p": 1.0, **settings}), random_stream(2, 0)
    drawn = [next_token(torch.tensor(logits), NOTHING, NOTHING, config, rng) for _ in range(count)]
    observed = torch.tensor(drawn).bincount(minlength=len(logits)).tolist()
    expected = distribution_by_hand(logits, **settings)
    pairs = [(o, count * e) for o, e in zip(observed, expected, strict=True) if e]
    assert sum(o for o, _ in pairs) == count, "nothing else is drawn"
    assert len(pairs) > 1 and chisquare(*zip(*pairs, strict=True)).pvalue > 0.001


def test_top_k_keeps_ties():
    assert keep_top_k(torch.tensor([2.0, 1.0, 2.0, 2.0, 0.0]), 2).isfinite().tolist() == [
        True,
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("temperature", [1e-9, 1e-45, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature):
    config = GenerateConfig(temperature=temperature, top_p=1)
    for seed in range(5):
        logits = random_logits(seed, rows=1)[0]
        assert next_token(logits, NOTHING, NOTHING, config, random_stream(0, 0)) == logits.argmax()


def test_temperature_zero_is_greedy_and_draws_nothing():
    logits, rng = random_logits(0, rows=1)[0], random_stream(0, 0)
    before = rng.getstate()
    assert next_token(logits, NOTHING, NOTHING, GenerateConfig(temperature=0), rng) == logits.argmax()
    assert rng.getstate() == before


def test_suppressed_tokens_are_never_chosen():
    logits = random_logits(1, rows=1)[0]
    for temperature in (0.0, 1.0):
        config = GenerateConfig(temperature=temperature)
        best = logits.argsort(descending=True)[:49]
        chosen = next_token(logits, NOTHING, best, config, random_stream(0, 0))
        assert chosen == logits.argmin()


def test_draw_never_takes_a_token_of_probability_zero():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    assert draw(probabilities, 0.0) == 1
    assert draw(probabilities, math.nextafter(0.5, 0)) == 1
    assert draw(probabilities, 0.5) == 3
    assert draw(probabilities, math.nextafter(1.0, 0)) == 3


def test_draws_follow_the_distribution():
    """20,000 draws through the filters; a fair sampler fails this for 1 seed in 1,000."""
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -2.0])
    config, count = GenerateConfig(temperature=1.5, top_k=5, top_p=1), 20_000
    expected = torch.softmax(logits.double() / 1.5, -1)
    expected[5] = 0
    expected /= expected.sum()
    rng = random_stream(0, 0)
    drawn = torch.tensor([next_token(logits, NOTHING, NOTHING, config, rng) for _ in range(count)])
    observed = drawn.bincount(minlength=6)
    assert observed[5] == 0
    assert chisquare(observed[:5], count * expected[:5]).pvalue > 0.001


def test_random_streams_of_samples_are_independent():
    """The first draws of many samples are uniform too: neighbouring seeds and indices are independent."""
    firsts = [random_stream(seed, index).random() for seed in range(100) for index in range(100)]
    assert len(set(firsts)) == len(firsts)
    observed = torch.histc(torch.tensor(firsts), bins=20, min=0, max=1)
    assert chisquare(observed).pvalue > 0.001


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_non_finite_logits_are_an_error(value, temperature):
    logits = torch.zeros(5)
    logits[2] = value
    with pytest.raises(NonFiniteError):
        next_token(logits, NOTHING, NOTHING, GenerateConfig(temperature=temperature), random_stream(0, 0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (-1, -1e-9, math.nan, math.inf)),
        *(("top_k", v) for v in (-1, 0.5)),
        *(("top_p", v) for v in (0, -0.1, 1.01, math.nan)),
        *(("min_p", v) for v in (-0.1, 1, math.nan)),
        *(("repetition_penalty", v) for v in (0, -1, math.nan, math.inf)),
        *(("typical_p", v) for v in (0, 1.5, math.nan)),
        *((f"{name}_penalty", v) for name in ("presence", "frequency", "length") for v in (math.nan, math.inf)),
        *((("no_repeat_ngram_size"), v) for v in (-1, 0.5)),
        *(("min_new_tokens", v) for v in (-1, 201)),
        *(("logit_bias", {text: v}) for text, v in (("", 1.0), ("a", math.nan), ("a", "x"))),
        ("num_beams", 0),
        *(("num_samples", v) for v in (0, -3)),
        *(("max_new_tokens", v) for v in (0, -3)),
        ("stop", ["a", ""]),
    ],
)
def test_wrong_settings_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name.replace("_", "[-_]")) as error:
        build_config(GenerateConfig, {name: value}, "the command line")
    assert error.value.exit_code == 2


def test_bounds_are_allowed():
    assert GenerateConfig(temperature=0, top_k=0, top_p=1, min_p=0, num_samples=1, max_new_tokens=1).temperature == 0
    assert GenerateConfig(top_k=10**9, top_p=1e-9, min_p=0.999, temperature=1e9).top_k == 10**9
