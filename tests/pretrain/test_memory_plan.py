"""`python -m pretrain plan`: its arithmetic against autograd, the optimizers and the ZeRO paper."""

import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mini_llm.engine.config import build_config
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.kernels import install as layer_kernels
from mini_llm.engine.kernels import linear
from mini_llm.engine.kernels.install import use_kernels
from mini_llm.engine.kernels.load import load_kernels
from mini_llm.engine.muon import WHOLE, cut_shape, head_pieces, muon_updates
from mini_llm.engine.optim import make_optimizer, parameter_groups
from mini_llm.engine.settings import OptimConfig
from mini_llm.model import HEADS, ModelConfig
from pretrain.config import PretrainConfig
from pretrain.plan.activations import activation_bytes
from pretrain.plan.fit import fit
from pretrain.plan.memory import muon_bytes, predict_memory
from pretrain.plan.parameters import count_parameters
from pretrain.plan.setup import MemorySetup
from pretrain.plan.trial_steps import random_batch, run_trial_steps
from pretrain.plan_command import parse_count, parse_size
from pretrain.preset_files import preset_names
from pretrain.presets import build_config as preset
from pretrain.presets import shape_of
from tests.alive import Alive

ROOT = Path(__file__).parents[2]
ROWS, LENGTH = 6, 24


def config(**changes) -> ModelConfig:
    sizes = {
        "vocab_size": 384,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "intermediate_size": 100,
        "causal": True,
    }
    return ModelConfig(**{**sizes, **changes})


def setup(**changes) -> MemorySetup:
    return MemorySetup(**{"rows": ROWS, "length": LENGTH, "labels": LENGTH, **changes})


def saved_bytes(model: torch.nn.Module, batch: dict, precision: str, casts: bool) -> int:
    """Bytes that autograd keeps from a forward pass: each storage once, without weights and, if `casts`, without their
    autocast copies."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    shapes = {tuple(parameter.shape) for parameter in model.parameters() if parameter.dim() == 2}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        is_cast = casts and precision != "fp32" and tuple(tensor.shape) in shapes and tensor.dtype != torch.float32
        if tensor.untyped_storage().data_ptr() not in weights and not is_cast:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    casting = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with casting, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**batch, read=lambda predict, hidden: hidden)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


ARCHITECTURES = {
    "gated, RMSNorm, rotary, QK-norm": {},
    "grouped heads": {"num_key_value_heads": 2, "head_dim": 8},
    "no QK-norm": {"qk_norm": False},
    "LayerNorm, no gate, biases, learned positions": {
        "norm": "layernorm",
        "norm_bias": True,
        "qk_norm": False,
        "gated_mlp": False,
        "hidden_act": "gelu",
        "attention_bias": True,
        "mlp_bias": True,
        "position": "learned",
    },
    "LayerNorm with QK-norm": {"norm": "layernorm"},
    "ReLU": {"gated_mlp": False, "hidden_act": "relu"},
    "gated tanh": {"hidden_act": "tanh"},
    "post-norm": {"norm_place": "post", "final_norm": False, "norm": "layernorm", "qk_norm": False},
    "sliding window": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "sliding_window": 5,
    },
    "dropout": {"dropout": 0.1},
    "encoder": {"causal": False},
    "encoder without the first norm": {
        "causal": False,
        "embedding_norm": True,
        "first_attention_norm": False,
        "norm": "layernorm",
    },
    "relative positions": {"position": "relative", "qk_norm": False, "num_key_value_heads": 4},
}


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "half"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_match_what_autograd_saves(name, precision, kernels, monkeypatch):
    model_config = config(**ARCHITECTURES[name])
    model = HEADS["causal" if model_config.causal else "masked"](model_config).train()
    if kernels and load_kernels() is None:
        pytest.skip("no C++ compiler, or no AVX2")
    monkeypatch.setattr(layer_kernels, "SMALL", 0)
    monkeypatch.setattr(linear, "LARGE", 0)
    if kernels:
        use_kernels(model)
    chosen = setup(precision="fp32" if precision == "fp32" else "bf16", cast=precision == "half", kernels=kernels)
    if precision == "half":
        model = model.bfloat16()
    ids = torch.randint(model_config.vocab_size, (ROWS, LENGTH))
    # The kernels keep no cast copies of large weights; here all weights count as large.
    found = saved_bytes(model, {"input_ids": ids}, precision, casts=not kernels or not model_config.causal)
    assert activation_bytes(model_config, chosen) == pytest.approx(found, rel=0.02)


SHAPES = {
    **ARCHITECTURES,
    "untied head": {"tie_word_embeddings": False},
    "BERT": {
        "causal": False,
        "norm": "layernorm",
        "norm_bias": True,
        "type_vocab_size": 2,
        "next_sentence": True,
        "position": "learned",
        "embedding_norm": True,
        "head_bias": True,
        "decoder_bias": True,
    },
    "encoder-decoder": {
        "causal": False,
        "is_encoder_decoder": True,
        "num_decoder_layers": 2,
        "position": "relative",
        "qk_norm": False,
    },
}


# Total and matrices for V 384, C 64, 2 layers and 4 heads, computed by formula from the architectures.
COUNTS = {
    "gpt": (131_456, 106_496),
    "mlm": (135_936, 106_496),
    "bert": (135_810, 98_304),
    "gpt2": (126_720, 98_304),
    "llama": (131_392, 106_496),
    "modernbert": (135_936, 106_496),
    "qwen3": (131_456, 106_496),
    "t5": (295_936, 245_760),
    "transformer": (258_432, 229_376),
}


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_the_expected_number_of_parameters(name):
    sizes = {"vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model_config = preset(name, {**sizes, "max_position_embeddings": 32})
    counted = count_parameters(model_config)
    assert (counted.total, counted.hidden) == COUNTS[name]
    model = HEADS[shape_of(model_config.causal, model_config.is_encoder_decoder)](model_config)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
def test_counting_parameters_imports_no_compiler():
    program = """
import sys
from pretrain.plan.parameters import count_parameters
from pretrain.presets import build_config
sizes = {"vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
for name in ("gpt", "mlm", "t5", "transformer"):
    count_parameters(build_config(name, {**sizes, "max_position_embeddings": 32}))
print(*{"sympy", "torch._dynamo"} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_match_the_model(name):
    model_config = config(**SHAPES[name])
    model = HEADS[shape_of(model_config.causal, model_config.is_encoder_decoder)](model_config)
    counted = count_parameters(model_config)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    groups = parameter_groups(model, OptimConfig(), muon=True)
    matrices, pieces, cuts = Counter(), Counter(), head_pieces(model)
    for parameter in (p for group in groups if "momentum" in group for p in group["params"]):
        matrices[cut_shape(parameter.shape, WHOLE)[1:]] += parameter.numel()
        pieces[cut_shape(parameter.shape, cuts.get(parameter, WHOLE))[1:]] += parameter.numel()
    assert (counted.matrices, counted.pieces) == (matrices, pieces)
    assert counted.largest == max(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("muon", [False, True])
def test_optimizer_state_matches_what_the_optimizer_keeps(muon):
    model_config = config()
    model = HEADS["causal"](model_config)
    optimizer = make_optimizer(model, OptimConfig(name="muon" if muon else "adamw"), None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values() if v.dim())
    assert predict_memory(model_config, setup(muon=muon)).parts["optimizer"] == kept


def test_with_kernels_the_casts_of_large_matrices_are_not_kept():
    """768 x 768 is large, even when Muon splits it into heads; 512 x 512 is not."""
    for width, kept in ((768, 0), (512, 4 * 512 * 512)):
        model_config = config(hidden_size=width, num_hidden_layers=1, intermediate_size=4 * width)
        casts = predict_memory(model_config, setup(precision="bf16", kernels=True)).parts["bf16 copies of weights"]
        assert casts == 2 * (kept + width * model_config.vocab_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, pieces", [(64, WHOLE), (192, WHOLE), (64, (4, 1)), (64, (1, 4))])
def test_muon_memory_matches_its_tensors(rows, pieces, dtype):
    shape = torch.Size((rows, 64))
    gradients = [torch.randn(shape) for _ in range(6)]
    with Alive() as alive:
        muon_updates([gradient.clone() for gradient in gradients], [pieces] * 6, dtype)
    found = Counter({tuple(cut_shape(shape, pieces)[1:]): 6 * shape.numel()})
    assert alive.peak == pytest.approx(muon_bytes(found, dtype.itemsize), rel=0.01)


@pytest.mark.parametrize("ranks", [1, 8])
def test_bytes_per_parameter_match_the_zero_paper(ranks):
    """Rajbhandari et al. 2020, figure 1: half precision, AdamW: 2 (weights) + 12 (fp32 weights and moments) bytes."""
    model_config = config()
    total = count_parameters(model_config).total
    for stage, sharded_weights in ((1, False), (2, False), (3, True)):
        parts = predict_memory(model_config, setup(stage=stage, ranks=ranks, precision="bf16", cast=True)).parts
        assert parts["fp32 master weights"] + parts["optimizer"] == pytest.approx(12 * total / ranks)
        # Stage 3 keeps weights gathered up to DeepSpeed's stage3_max_live_parameters, a billion.
        assert parts["weights"] == pytest.approx(2 * total * (1 + 1 / ranks if sharded_weights else 1))


def test_a_large_model_is_gathered_only_in_part():
    model_config = config(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=11008)
    total = count_parameters(model_config).total
    parts = predict_memory(model_config, setup(stage=3, ranks=64, precision="bf16", cast=True, device="cuda")).parts
    assert total > 6e9
    assert parts["weights"] == pytest.approx(2 * total / 64 + 2e9)


def test_checkpointing_keeps_the_input_of_every_block_instead():
    model_config = config(num_hidden_layers=12)
    kept, every, second = (activation_bytes(model_config, setup(checkpoint_every=n)) for n in (0, 1, 2))
    inputs = 4 * 64 * ROWS * LENGTH
    blocks = kept - every + 12 * inputs
    assert second == pytest.approx(kept - blocks / 2 + 6 * inputs)
    assert predict_memory(model_config, setup(checkpoint_every=1)).peak < predict_memory(model_config, setup()).peak


def test_a_run_that_does_not_fit_is_refused_with_one_that_does():
    model_config = config()
    wanted = setup(rows=128)
    needed = predict_memory(model_config, wanted).peak
    assert fit(model_config, wanted, needed, 0.0, 1, "here").peak == needed
    with pytest.raises(ConfigError, match=r"largest part: .*gradient_checkpointing=1 would fit"):
        fit(model_config, wanted, 0.95 * needed, 0.0, 1, "here")
    with pytest.raises(ConfigError, match=r"micro_batch_size=\d+ .*would fit"):
        fit(model_config, wanted, 0.3 * needed, 0.0, 1, "here")
    with pytest.raises(ConfigError, match=r"No setting fits: a model of at most about"):
        fit(model_config, wanted, 1e4, 0.0, 1, "here")
    with pytest.raises(ConfigError, match=r"in each of 2 processes"):
        fit(model_config, wanted, needed, 0.0, 2, "here")


def test_a_run_that_is_said_to_fit_does():
    model_config, limit = config(), predict_memory(config(), setup(rows=128)).peak / 4
    with pytest.raises(ConfigError) as refusal:
        fit(model_config, setup(rows=128), limit, 0.0, 1, "here")
    said = dict(word.split("=") for word in str(refusal.value).split() if "=" in word)
    rows = int(said["micro_batch_size"])
    assert 128 % rows == 0
    every = int("runtime.gradient_checkpointing" in said)
    remedy = setup(rows=rows, accumulation=128 // rows, checkpoint_every=every)
    assert predict_memory(model_config, remedy).peak <= limit


@pytest.mark.parametrize("ranks, every", [(8, 0), (8, 1), (64, 0), (64, 1)])
def test_the_table_for_a_billion_parameters_matches_the_plan(ranks, every):
    sizes = {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 16, "max_position_embeddings": 2048}
    model_config = preset("gpt", {**sizes, "vocab_size": 32768})
    trial = {"rows": 4, "length": 2048, "labels": 4 * 2048, "precision": "bf16", "device": "cuda", "muon_itemsize": 2}
    trial |= {"ranks": ranks, "accumulation": 2**19 // (8192 * ranks), "checkpoint_every": every, "muon": True}
    found = [predict_memory(model_config, setup(**trial, stage=stage)).tensors / 1e9 for stage in range(4)]
    name = f"{ranks} GPUs" + (", gradient checkpointing" if every else "")
    row = f"| {name} | {' | '.join(f'{number:.1f}' for number in found)} |"
    assert row in (ROOT / "docs" / "scale.md").read_text()


RANDOM = {
    "decoder": ({}, {}),
    "encoder": ({"causal": False}, {"labels": 7}),
    "encoder that starts as a decoder": ({"causal": False}, {}),
    "BERT": (SHAPES["BERT"], {"labels": 7}),
    "encoder-decoder": (SHAPES["encoder-decoder"], {"target_length": 9, "labels": 9}),
}


@pytest.mark.parametrize("name", RANDOM)
def test_trial_steps_train_models_of_every_shape(name):
    changes, batch = RANDOM[name]
    model_config, trial = config(**changes), setup(**batch)
    labels = random_batch(model_config, trial)["labels"]
    assert labels.shape == (ROWS, trial.labels)
    tree = {"runtime": {"device": "cpu", "precision": "fp32"}}
    assert len(run_trial_steps(build_config(PretrainConfig, tree, "test"), model_config, trial, 2, 60)) == 2


@pytest.mark.parametrize(
    "text, number", [("300M", 3e8), ("10B", 1e10), ("7", 7), ("1.5 T", 1.5e12), ("1e9", 1e9), ("1,000,000", 1e6)]
)
def test_counts_are_parsed(text, number):
    assert parse_count(text, "--tokens") == number


@pytest.mark.parametrize("text", ["", "GB", "-3", "1.2.3", "0", "10 apples", "80GB"])
def test_an_invalid_count_is_refused(text):
    with pytest.raises(ConfigError, match="--tokens"):
        parse_count(text, "--tokens")


@pytest.mark.parametrize("text, number", [("80GB", 80e9), ("80 GiB", 80 * 2**30), ("40g", 40e9), ("0.5MiB", 2**19)])
def test_sizes_are_parsed(text, number):
    assert parse_size(text, "--memory") == number


@pytest.mark.parametrize(
    "text, advice",
    [("80", "write --memory 80GB, or --memory 80GiB"), ("80B", "80GB"), ("GB", "80GB"), ("-3GB", "80GB")],
)
def test_a_size_without_a_unit_is_refused_with_advice(text, advice):
    with pytest.raises(ConfigError, match=advice):
        parse_size(text, "--memory")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pretrain", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


TINY = ["sizes.hidden_size=32", "sizes.max_position_embeddings=32", "micro_batch_size=2", "global_batch_size=4"]


@pytest.mark.slow
def test_the_command_prints_memory_speed_and_disk_and_leaves_no_files(tmp_path):
    result = run(tmp_path, "plan", *TINY, "--ranks", "2", "--zero", "2", "--tokens", "1M")
    assert result.returncode == 0, result.stderr
    for words in ("ZeRO 2 *", "activations", "peak", "parameters", "measured here", "a checkpoint", "token store"):
        assert words in result.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("command", [["plan", "--tokens", "1M"], []])
def test_a_run_that_cannot_fit_is_refused_before_any_work(tmp_path, command):
    sizes = ["sizes.hidden_size=16384", "sizes.num_hidden_layers=500", "vocab_size=4096"]
    result = run(tmp_path, *command, *sizes)
    assert result.returncode == 2
    assert "does not fit" in result.stderr and "largest part" in result.stderr and "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())
