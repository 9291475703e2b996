"""Fitting a new model to bigram counts: the counts, the targets, and the loss that the fit reaches."""

import numpy as np
import pytest
import torch

from mini_llm.engine.device import DTYPES
from mini_llm.model import HEADS, ModelConfig
from pretrain.preset_files import preset_names
from pretrain.presets import build_config
from pretrain.warm_start import bigrams
from pretrain.warm_start.bigrams import PRIOR, Bigrams, fit_bigrams, is_bigram_model

VOCABULARY, LIKELY = 48, 0.9


class Ids:
    """A token store in memory."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids.numpy()

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.ids[start : start + count].copy()


def successor(ids: torch.Tensor) -> torch.Tensor:
    """The most likely successor of each token: a permutation."""
    return (5 * ids + 3) % VOCABULARY


@pytest.fixture(scope="module")
def store() -> Ids:
    """A chain in which `successor` follows each token with probability LIKELY, else any token."""
    generator = torch.Generator().manual_seed(0)
    strays = torch.rand(20_000, generator=generator) > LIKELY
    ids = torch.randint(VOCABULARY, (20_000,), generator=generator)
    for i in range(1, len(ids)):
        if not strays[i]:
            ids[i] = successor(ids[i - 1])
    return Ids(ids)


def new_model(preset: str, **changes) -> torch.nn.Module:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = build_config(preset, {**sizes, "max_position_embeddings": 16, **changes})
    torch.manual_seed(0)
    return HEADS["causal" if config.causal else "masked"](config)


def dense(store: Ids, tokens: int) -> torch.Tensor:
    ids = torch.from_numpy(store.ids[:tokens])
    table = torch.zeros(VOCABULARY, VOCABULARY)
    return table.index_put_((ids[:-1], ids[1:]), torch.ones(tokens - 1), accumulate=True)


@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_bigram_counts_match_neighbouring_pairs(store, monkeypatch, chunk):
    monkeypatch.setattr(bigrams, "CHUNK", chunk)
    table, (found, _) = dense(store, 500), Bigrams.count(store, 500, VOCABULARY)
    rows = torch.repeat_interleave(found.starts.diff())
    assert torch.equal(torch.zeros_like(table).index_put((rows, found.successors), found.counts), table)
    assert torch.equal(found.totals, table.sum(1))
    assert torch.allclose(found.unigrams, table.sum(0) / 499)


def test_targets_are_smoothed_towards_the_unigram_distribution(store):
    table, (found, _) = dense(store, 500), Bigrams.count(store, 500, VOCABULARY)
    shares = table.sum(0) / table.sum()
    expected = (table + PRIOR * shares) / (table.sum(1, keepdim=True) + PRIOR)
    tokens = torch.tensor([3, 0, 47, 3])
    targets = torch.zeros(4, VOCABULARY)
    found.subtract_targets(targets, tokens)
    assert torch.allclose(-targets, expected[tokens], atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.tensor(-1.0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("preset", "tied"), [("qwen3", False), ("llama", False), ("modernbert", True)])
def test_a_fitted_model_predicts_the_successor(store, preset, tied, precision):
    model = new_model(preset, tie_word_embeddings=tied)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if ".blocks." in name}
    fit_bigrams(model, Bigrams.count(store, len(store), VOCABULARY)[0], [(0, 120)], DTYPES[precision])
    ids = torch.from_numpy(store.ids[:160]).view(10, 16)
    extra = {} if model.config.causal else {"causal": True}
    with torch.no_grad():
        logits = model.eval()(ids, **extra)
    assert (logits.argmax(-1) == successor(ids)).float().mean() > 0.95
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    stray = (1 - LIKELY) / VOCABULARY
    entropy = -(LIKELY + stray) * np.log(LIKELY + stray) - (VOCABULARY - 1) * stray * np.log(stray)
    assert loss < entropy + 0.25
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
    assert all(parameter.grad is None for parameter in after.values())


def test_which_models_start_as_a_bigram_model():
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {name: build_config(name, {**sizes, "max_position_embeddings": 16}) for name in preset_names()}
    # Decoders only with an untied head. Absolute positions, token types and post-norm rule a model out.
    assert {name for name, config in configs.items() if is_bigram_model(config)} == {"mlm", "modernbert"}
    untied = {name: ModelConfig(**{**vars(config), "tie_word_embeddings": False}) for name, config in configs.items()}
    can = {name for name, config in untied.items() if is_bigram_model(config)}
    assert can == {"gpt", "qwen3", "llama", "mlm", "modernbert"}
