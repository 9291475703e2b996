"""docs/minimal.py is the project's default decoder on one page: the same numbers, and nothing but PyTorch."""

import ast
import importlib.util
import math
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mini_llm.model import CausalLM, KVCache, ModelConfig

PATH = Path(__file__).parents[2] / "docs" / "minimal.py"

# Its names and the project's; {i} is a layer's number. The head is the embedding.
TIED = "lm_head.weight"
NAMES = {
    "embed.weight": "trunk.embed.weight",
    "layers.{i}.norm.weight": "trunk.blocks.{i}.attn_norm.weight",
    **{
        f"layers.{{i}}.attention.{part}.weight": f"trunk.blocks.{{i}}.attn.{part}.weight"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
    },
    "layers.{i}.mlp_norm.weight": "trunk.blocks.{i}.mlp_norm.weight",
    **{
        f"layers.{{i}}.mlp.{part}.weight": f"trunk.blocks.{{i}}.mlp.{part}.weight"
        for part in ("gate_proj", "up_proj", "down_proj")
    },
    "norm.weight": "trunk.norm.weight",
}


def load_minimal():
    spec = importlib.util.spec_from_file_location("minimal", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


minimal = load_minimal()


def small(heads: int = 4, kv_heads: int = 2, vocabulary: int = 50):
    return minimal.Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=24,
        rope_theta=100.0,
        norm_eps=1e-3,
    )


@pytest.fixture(params=[(4, 4), (4, 2), (6, 1)], ids=lambda heads: f"{heads[0]}-heads-{heads[1]}-kv")
def pair(request):
    """One model twice, with the same random weights: as on the page, and the project's."""
    config = small(*request.param)
    ours = CausalLM(ModelConfig(causal=True, **asdict(config))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in ours.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.3 * noise if weight.dim() > 1 else 1 + 0.2 * noise)
    names = {a.format(i=i): b.format(i=i) for a, b in NAMES.items() for i in range(config.num_hidden_layers)}
    weights = ours.state_dict()
    assert set(names.values()) == set(weights) - {TIED}
    page = minimal.LanguageModel(config).eval()
    page.load_state_dict({a: weights[b] for a, b in names.items()})
    return page, ours


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


def test_its_logits_are_the_projects(pair):
    page, ours = pair
    ids = tokens(3, 24)
    logits = page(ids)
    assert logits.std() > 0.5
    torch.testing.assert_close(logits, ours(ids), rtol=0, atol=1e-5)


def test_its_loss_is_the_cross_entropy_of_the_projects_logits(pair):
    page, ours = pair
    ids = tokens(3, 25)
    expected = F.cross_entropy(ours(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(page.loss(ids), expected, rtol=0, atol=1e-5)


def test_it_generates_greedily_what_the_project_does_with_a_cache(pair):
    page, ours = pair
    written = page.generate(tokens(2, 4), count=20, temperature=0)
    assert len(written[:, 4:].unique()) > 5  # a model that repeats itself would hide mistakes
    cache, rest = KVCache(ours.config, batch_size=2, max_length=24), [tokens(2, 4)]
    with torch.no_grad():
        for _ in range(20):
            rest.append(ours(rest[-1], cache=cache)[:, -1:].argmax(-1))
    assert torch.equal(written, torch.cat(rest, dim=1))


def test_beyond_its_context_it_goes_on_from_the_last_tokens(pair):
    page, ours = pair
    written = page.generate(tokens(2, 30), count=1, temperature=0)
    assert torch.equal(written[:, -1], ours(tokens(2, 30)[:, -24:])[:, -1].argmax(-1))


def test_sampling_stays_in_the_vocabulary_and_keeps_the_prompt(pair):
    page, _ = pair
    written = page.generate(tokens(2, 4), count=6, temperature=0.8)
    assert written.shape == (2, 10) and torch.equal(written[:, :4], tokens(2, 4))
    assert written.max() < 50


def test_a_few_steps_of_its_training_lower_the_loss():
    torch.manual_seed(0)
    text = "the cat sat on the mat. " * 20
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(c) for c in text])
    losses = minimal.train(minimal.LanguageModel(small(vocabulary=len(characters))), ids, steps=40, rows=4)
    assert len(losses) == 40
    assert abs(losses[0] - math.log(len(characters))) < 0.3
    assert losses[-1] < 0.75 * losses[0]


def test_it_runs_as_a_program_on_its_own_text(monkeypatch, capsys):
    """With fewer steps and characters than it has."""
    source = PATH.read_text()
    for long, short in (("steps=300", "steps=2"), ("count=500", "count=5")):
        assert source.count(long) == 1
        source = source.replace(long, short)
    monkeypatch.setattr(sys, "argv", ["minimal.py"])
    exec(compile(source, str(PATH), "exec"), {"__name__": "__main__", "__file__": str(PATH)})
    report, sample = capsys.readouterr().out.split("\n\n", 1)
    assert report.count("loss") == 3
    assert sample.startswith(source[:20])


def test_it_is_one_page_that_imports_torch_and_the_standard_library_alone():
    source = PATH.read_text()
    assert source.isascii()
    assert len(source.splitlines()) <= 200
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            modules.add(node.module)
    assert {name.split(".")[0] for name in modules} <= {"torch", *sys.stdlib_module_names}
