"""A warm start keeps to its share of the budget, and is repeated with the same bits; useless models are named."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from mini_llm.engine.run.files import write_json
from mini_llm.engine.run.jsonl import JsonLines
from mini_llm.engine.run.state import read_state
from mini_llm.model import HEADS
from pretrain.presets import build_config
from pretrain.shortcomings import shortcomings
from pretrain.warm_start import bigrams, cooccurrence
from pretrain.warm_start.apply import FITTED, Applied, apply_warm_start
from pretrain.warm_start.choose import WarmStart

VOCABULARY, TOKENS = 64, 4000


class Ids:
    """A token store in memory."""

    def __init__(self) -> None:
        steps = torch.randint(1, 4, (TOKENS,), generator=torch.Generator().manual_seed(0))
        self.ids = (steps.cumsum(0) % VOCABULARY).numpy()

    def __len__(self) -> int:
        return TOKENS

    def read(self, start: int, count: int):
        return self.ids[start : start + count].copy()


def warmed(
    budget: float | None = None, earlier: Applied | None = None
) -> tuple[Applied, dict[str, torch.Tensor], list[str]]:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = build_config("gpt", {**sizes, "max_position_embeddings": 16, "tie_word_embeddings": False})
    torch.manual_seed(0)
    model, lines = HEADS["causal"](config), []
    plan = WarmStart(TOKENS, cooccurrence=True, bigram_steps=60)
    done = apply_warm_start(model, Ids(), plan, torch.device("cpu"), torch.float32, lines.append, budget, earlier)
    return done, model.state_dict(), lines


@pytest.fixture
def ticking(monkeypatch) -> SimpleNamespace:
    """Small chunks, and a clock that advances a second whenever it is read."""
    monkeypatch.setattr(bigrams, "CHUNK", 500)
    monkeypatch.setattr(cooccurrence, "CHUNK", 500)
    monkeypatch.setattr(cooccurrence, "seconds_to_factorize", lambda *_: 0.5)
    count = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(count)))
    for module in ("mini_llm.engine.run.deadline", "pretrain.warm_start.apply", "pretrain.warm_start.bigrams"):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


@pytest.mark.parametrize("budget", [30.0, 200.0, 300.0])
def test_a_slow_machine_cuts_every_phase_and_the_same_bits_come_again(budget, ticking, tmp_path):
    start = ticking.monotonic()
    done, weights, lines = warmed(budget)
    assert ticking.monotonic() - start < FITTED * budget + 25
    assert done.bigram_totals[-1][1] < 60 and "cut to its share of the budget" in lines[-1]
    write_json(tmp_path / "warm_start.json", done.model_dump())
    again, same, _ = warmed(None, read_state(tmp_path / "warm_start.json", Applied))
    assert again == done
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_without_pressure_everything_is_done():
    done, weights, lines = warmed(budget=3600.0)
    assert done == Applied(neighbour_tokens=TOKENS, bigram_tokens=TOKENS, bigram_totals=[(0, 60)])
    assert len(lines) == 3 and "cut" not in lines[-1]
    _, unbounded, _ = warmed()
    assert all(torch.equal(weights[name], unbounded[name]) for name in weights)


@pytest.mark.parametrize(
    ("loss", "expected"), [(8.07, ["unigram entropy is 7.000", "step 1 was 5.290"]), (6.0, ["step 1"]), (5.0, [])]
)
def test_a_model_that_learned_nothing_is_named(loss, expected, tmp_path):
    rows = JsonLines(tmp_path / "metrics.jsonl")
    for step, value in enumerate((5.29, None, 8.5), 1):
        rows.append({"step": step, "train/loss": value})
    rows.close()
    data = SimpleNamespace(stores={"train": SimpleNamespace(unigram_entropy=lambda: 7.0)})
    found = shortcomings(SimpleNamespace(path=tmp_path), loss, data)
    assert len(found) == len(expected)
    assert all(words in line and f"{loss:.3f}" in line for words, line in zip(expected, found, strict=True))


def test_held_out_loss_above_the_first_training_loss_is_no_shortcoming_of_a_model_that_learned(tmp_path):
    rows = JsonLines(tmp_path / "metrics.jsonl")
    for step, value in enumerate((3.7, 3.5), 1):
        rows.append({"step": step, "train/loss": value})
    rows.close()
    assert shortcomings(SimpleNamespace(path=tmp_path), 4.0, SimpleNamespace(stores=None)) == []
