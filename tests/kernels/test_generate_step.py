"""The compiled decoding step equals the model, for one prompt and for batches, in every supported architecture."""

import os
import re
from pathlib import Path

import pytest
import torch

from generate.config import GenerateConfig
from generate.context import Window
from generate.decode import TextGenerator
from generate.load import compile_step
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.kernels import build as library
from mini_llm.engine.kernels.decode import SOURCE, CompiledStep, HugePages, round_to_int8, unsupported
from mini_llm.model import KVCache
from mini_llm.model.quantization import dequantize, quantize
from tests.byte_tokenizer import ByteTokenizer
from tests.models import tiny_model

if library.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)

GPT2 = {"norm": "layernorm", "norm_bias": True, "qk_norm": False, "gated_mlp": False, "hidden_act": "gelu_new"}
GPT2 |= {"attention_bias": True, "mlp_bias": True, "position": "learned", "num_key_value_heads": 4}
LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5, "local_rope_theta": 500.0}
ODD = {"hidden_size": 60, "head_dim": 10, "intermediate_size": 77, "hidden_act": "gelu", "tie_word_embeddings": False}
SCALED = {"logit_scale": 0.5, "embedding_scale": 7.0, "attention_scale": 0.3, "hidden_act": "relu"}
SCALED |= {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "qk_norm": False}
ARCHITECTURES = {"qwen3": {}, "gpt2": GPT2, "local": LOCAL, "odd": ODD, "scaled": SCALED}


def made(kind="fp32", context=48, **changes):
    """A tiny model and its step, the model's own weights rounded as the step's."""
    model = tiny_model(max_position_embeddings=context, **changes)
    if kind == "bf16":
        model = model.bfloat16()
    if kind == "int8":
        round_to_int8(model)
    return model, CompiledStep(model, int8=kind == "int8")


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_the_step_equals_the_model(name, kind):
    model, step = made(kind, **ARCHITECTURES[name])
    ids = torch.randint(320, (1, 40), generator=torch.Generator().manual_seed(1))
    # Widened weights: the step rounds keys and values alone, a model in bf16 every result.
    expected = model(ids)[0].float() if kind != "bf16" else model.float()(ids)[0]
    model = model.to(torch.bfloat16 if kind == "bf16" else torch.float32)
    cache = KVCache(model.config, 1, 40, dtype=model.lm_head.weight.dtype)
    model(ids[:, :5], None, cache)
    logits = torch.cat([step([token], [cache]) for token in ids[0, 5:].tolist()])
    # Beside int8 weights the step rounds the inputs of products to 16 bits.
    bound = {"fp32": 1e-5, "bf16": 0.02, "int8": 5e-4}[kind]
    assert (logits - expected[5:]).norm() / expected[5:].norm() < bound
    with pytest.raises(ValueError, match="40 positions"):
        step([0], [cache])


@pytest.mark.slow
@pytest.mark.usefixtures("fewer_instructions")
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_results_are_the_same_with_fewer_processor_instructions(kind):
    for name in ("qwen3", "odd"):
        test_the_step_equals_the_model(name, kind)


@pytest.mark.parametrize("int8", [False, True])
def test_the_weights_of_the_model_move_and_stay_the_same(int8):
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    CompiledStep(model, int8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is model.trunk.embed.weight


@pytest.mark.parametrize("rows", [3, 8, 17])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["qwen3", "odd"])
@torch.inference_mode()
def test_a_row_is_bitwise_the_same_alone_and_in_a_batch(name, kind, rows):
    # Outputs that are no whole blocks, and more rows than fit a tile.
    model, step = made(kind, **ARCHITECTURES[name] | {"vocab_size": 331})
    prompts = [[5, 6, 7 + row] * (1 + row % 7) for row in range(rows)]
    alone = [Window(model, ids, 20, step) for ids in prompts]
    expected = [[step([t], [window.cache])[0] for t in range(30, 34)] for window in alone]
    caches = [Window(model, ids, 20, step).cache for ids in prompts]
    together = [step([t] * rows, caches) for t in range(30, 34)]
    for row in range(rows):
        assert torch.equal(torch.stack(expected[row]), torch.stack(together)[:, row])


def test_weights_lie_in_private_memory_which_has_huge_pages():
    maps = Path("/proc/self/smaps")
    if not maps.is_file():
        pytest.skip("no /proc")
    weight = HugePages(2**22).place(torch.ones(2**20))
    rights, inside = "", False
    for line in maps.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line):
            start, end, rights = int(found[1], 16), int(found[2], 16), found[3]
            inside = start <= weight.data_ptr() < end
        if inside and line.startswith("VmFlags"):
            assert rights == "rw-p" and "hg" in line.split()
            return
    pytest.fail("the weight lies in no mapping")


def generator(model, step, **settings):
    return TextGenerator(model, ByteTokenizer(), GenerateConfig(**settings), step=step)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0, "repetition_penalty": 1.2}])
@pytest.mark.parametrize("context", [16, 300])
def test_texts_are_the_same_with_and_without_the_step(settings, context):
    """With a context of 16 the window slides many times."""
    model, step = made(context=context)
    for prompt in ("ab", "a longer one"):
        texts = []
        for kind in (step, None):
            writer = generator(model, kind, max_new_tokens=60, **settings)
            sample = writer.sample(prompt)
            "".join(writer.stream(sample))
            texts.append((sample.ids, sample.text, sample.finish_reason, sample.window_slides))
        assert texts[0] == texts[1]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_batched_prompts_equal_single_ones(rows, compiled):
    """Prompts of several lengths, some equal; texts end at an end token, a stop string or the maximum length."""
    model, step = made(context=24)
    settings = {"temperature": 1.5, "max_new_tokens": 30, "stop": ["a", "e"]}
    prompts = ["", "ab", "xyz" * 5, "ab", "q"] * 2
    writer = generator(model, step if compiled else None, **settings)
    samples = [writer.sample(prompt, index) for index, prompt in enumerate(prompts)]
    assert {id(sample) for sample in writer.write(samples, rows)} == {id(sample) for sample in samples}
    for sample in samples:
        alone = generator(model, step if compiled else None, **settings)
        expected = alone.sample(sample.prompt, sample.index)
        assert "".join(alone.stream(expected)) == sample.text
        assert expected.ids == sample.ids and expected.finish_reason == sample.finish_reason
        assert expected.window_slides == sample.window_slides
    assert {sample.finish_reason for sample in samples} >= {"stop", "length"}


def test_int8_rounds_to_the_nearest_value():
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    error = (dequantize(*quantize(weight)) - weight).abs()
    half_step = weight.unflatten(-1, (2, 64)).abs().amax(-1, keepdim=True) / 127 / 2
    assert (error.unflatten(-1, (2, 64)) <= half_step * 1.001).all()
    assert torch.equal(quantize(dequantize(*quantize(weight)))[0], quantize(weight)[0])


@torch.inference_mode()
def test_int8_changes_the_logits_only_a_little():
    exact, _ = made()
    rounded, _ = made("int8")
    ids = torch.randint(320, (4, 40), generator=torch.Generator().manual_seed(1))
    logits = [model(ids) for model in (exact, rounded)]
    assert 0 < (logits[1] - logits[0]).norm() / logits[0].norm() < 0.05


def test_nan_stays_nan():
    model, _ = made()
    model.trunk.blocks[0].mlp.down_proj.weight.data[3, 3] = float("nan")
    with torch.inference_mode():
        assert CompiledStep(model)([5], [KVCache(model.config, 1, 4)]).isnan().all()


def test_unsupported_architectures_are_named():
    sinusoidal = tiny_model(position="sinusoidal")
    assert unsupported(sinusoidal.config) == "position=sinusoidal"
    assert unsupported(tiny_model().config) is None
    assert compile_step(sinusoidal, int8=False) is None
    with pytest.raises(
        ConfigError, match="int8 needs the compiled decode step, but it does not support position=sinusoidal"
    ):
        compile_step(sinusoidal, int8=True)


def test_without_a_compiler_pytorch_generates(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "compiler", lambda: None)
    library.load_library.cache_clear()
    try:
        assert compile_step(tiny_model(), int8=False) is None
        with pytest.raises(ConfigError, match=r"no C\+\+ compiler"):
            compile_step(tiny_model(), int8=True)
    finally:
        library.load_library.cache_clear()


@pytest.mark.slow
def test_the_library_is_built_once_and_a_failed_build_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs, real = [], library._compile
    monkeypatch.setattr(library, "_compile", lambda *a: runs.append(a) or real(*a))
    library.load_library.cache_clear()
    try:
        for _ in range(2):
            assert library.load_library(SOURCE)[0] is not None
            library.load_library.cache_clear()
        assert len(runs) == 1 and len(os.listdir(tmp_path / "mini-llm")) == 1
        monkeypatch.setattr(library, "FLAGS", [*library.FLAGS, "-no-such-flag"])
        loaded, reason = library.load_library(SOURCE)
        assert loaded is None and "no-such-flag" in reason
        assert len(os.listdir(tmp_path / "mini-llm")) == 1
    finally:
        library.load_library.cache_clear()
