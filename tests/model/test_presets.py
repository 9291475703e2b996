"""Presets: every file of configs/model/ is an architecture that its Hugging Face family supports and that trains."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
)

from mini_llm.engine.config import load_config
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.flops import flops_per_token
from mini_llm.engine.settings import LoopConfig
from mini_llm.engine.step import prepare, train_step
from mini_llm.model import HEADS, ModelConfig, load_model, save_model
from pretrain.config import PretrainConfig
from pretrain.plan.sizes import model_config
from pretrain.preset_files import PRESETS, preset_names, preset_path
from pretrain.presets import build_config, read_preset, shape_of

FAMILIES = {
    "transformer": "marian",
    "gpt2": "gpt2",
    "bert": "bert",
    "llama": "llama",
    "qwen3": "qwen3",
    "modernbert": "modernbert",
    "t5": "t5",
}
AUTO = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}
TOKENIZER = SimpleNamespace(vocab_size=64, bos_id=1, eos_id=2, pad_id=3, cls_id=5, sep_id=6)
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


def make(name: str, **sizes) -> ModelConfig:
    return model_config(PretrainConfig(model=name, sizes=sizes), TOKENIZER, 64, 32, 2, 4, 16)


def batch(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Rows that count upwards: every token follows from its neighbours."""
    rows = (torch.arange(12) + torch.arange(8)[:, None] * 5) % 50 + 7
    shape = shape_of(config.causal, config.is_encoder_decoder)
    if shape == "seq2seq":
        start = torch.full((8, 1), config.decoder_start_token_id)
        return {"input_ids": rows, "decoder_input_ids": torch.cat((start, rows[:, :-1]), 1), "labels": rows}
    if shape == "causal":
        return {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()}
    labels = rows.clone()
    labels[:, ::2] = -100
    found = {"input_ids": rows.where(labels == -100, 4), "labels": labels}
    return found | ({"next_sentence_label": torch.arange(8) % 2} if config.next_sentence else {})


def test_every_preset_has_its_file():
    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(FAMILIES)
    assert set(preset_names()) == {"gpt", "mlm", *FAMILIES}
    assert preset_path("gpt") == preset_path("qwen3") and preset_path("mlm") == preset_path("modernbert")
    assert all(path.read_text().startswith("# ") for path in PRESETS.glob("*.yaml"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preset_trains_and_is_saved_as_its_family(name, tmp_path, assert_parity):
    config = make(name)
    head = shape_of(config.causal, config.is_encoder_decoder)
    torch.manual_seed(0)
    settings = LoopConfig(runtime={"device": "cpu", "precision": "fp32"})
    training = prepare(HEADS[head](config), settings, Accelerator(cpu=True))
    losses = [train_step(training, [batch(config)], 1.0, 1.0)[0] for _ in range(12)]
    assert losses[-1] < losses[0]

    model = training.model.eval()
    save_model(model, tmp_path)
    auto = AutoModelForPreTraining if config.next_sentence else AUTO[head]
    theirs = auto.from_pretrained(tmp_path).eval()
    assert AutoConfig.from_pretrained(tmp_path).model_type == FAMILIES[name]
    inputs = {key: value for key, value in batch(config).items() if "label" not in key}
    with torch.no_grad():
        ours, found = model(**inputs), theirs(**inputs)
    logits = ours[0] if isinstance(ours, tuple) else ours
    expected = found.prediction_logits if config.next_sentence else found.logits
    assert_parity(
        FAMILIES[name], f"{type(theirs).__name__}, preset", "ours to theirs", (logits - expected).abs().max().item()
    )
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())


def test_default_presets_are_qwen3_and_modernbert():
    """gpt is Qwen3 and mlm is ModernBERT, with the same values as before presets existed."""
    common = {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
    assert make("gpt") == ModelConfig(vocab_size=64, causal=True, **common)
    assert make("mlm") == ModelConfig(
        vocab_size=64,
        causal=False,
        norm="layernorm",
        norm_eps=1e-5,
        embedding_norm=True,
        first_attention_norm=False,
        qk_norm=False,
        hidden_act="gelu",
        decoder_bias=True,
        classifier_pooling="mean",
        cls_token_id=5,
        sep_token_id=6,
        **common,
    )


def test_sizes_reach_the_model():
    config = make("llama", num_key_value_heads=2, head_dim=10, intermediate_size=24, tie_word_embeddings=False)
    assert (config.num_key_value_heads, config.head_dim, config.intermediate_size) == (2, 10, 24)
    assert not config.tie_word_embeddings
    assert make("t5", num_decoder_layers=1).num_decoder_layers == 1
    assert make("transformer").embedding_scale == 32**0.5


@pytest.mark.parametrize("name", ["qwen", "T5", "roberta"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"unknown model.*gpt, mlm, bert, gpt2, llama.*t5"):
        load_config(PretrainConfig, None, [f"model={name}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("causal: true\nnorms: rmsnorm", "did you mean 'norm'"),
        ("causal: true\nhidden_size: 64", "sizes.hidden_size"),
        ("causal: true\nnorm: batch", "norm .*rmsnorm"),
        ("norm: rmsnorm", "'causal' is missing"),
        ("causal: true\nnorm_place: post\nfirst_attention_norm: false", "norm_place"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_key(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_preset(str(path))


def test_an_architecture_without_a_family_is_refused_before_training(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("causal: true\nposition: sinusoidal\n")
    with pytest.raises(ConfigError, match="no Hugging Face class"):
        build_config(str(path), {**IDS, "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4,
                                 "num_hidden_layers": 2, "max_position_embeddings": 16})  # fmt: skip
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        make("gpt2", num_key_value_heads=2)


def test_a_custom_preset_names_its_run(tmp_path):
    path = tmp_path / "wide llama.yaml"
    path.write_text(preset_path("llama").read_text())
    assert PretrainConfig(model=str(path)).run_name == "wide-llama"
    assert PretrainConfig(model="t5").run_name == "t5"
    assert PretrainConfig(init="runs/t5/model").run_name == "t5-continued"


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_count_the_matrix_products(name):
    """PyTorch counts one forward pass, and a training step is three times that; attention counts as a full square."""
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(make(name), vocab_size=64, next_sentence=False)
    model = HEADS[shape_of(config.causal, config.is_encoder_decoder)](config).eval()
    for module in model.modules():
        if hasattr(module, "keep_weights"):
            # The explicit path multiplies the whole square.
            module.keep_weights = True
    rows = torch.randint(7, 60, (2, 16))
    inputs, share = {"input_ids": rows}, 1.0
    tokens = rows.numel()
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = rows[:, :4]
        tokens, share = rows.numel() + 8, 0.2
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    assert flops_per_token(config, 16, share) == pytest.approx(3 * counter.get_total_flops() / tokens, rel=1e-6)


def test_each_of_two_losses_is_a_mean_over_its_own_labels():
    """BERT's loss is a mean over masked tokens plus a mean over pairs, for any number of micro-batches."""
    config = make("bert")
    rows = batch(config)
    results = []
    for cuts in ([8], [4, 4], [2, 6]):
        torch.manual_seed(0)
        model = HEADS["masked"](config)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=len(cuts))
        # Muon in bf16 would make much of the last digit of a gradient.
        settings = LoopConfig(runtime={"device": "cpu", "precision": "fp32"}, optim={"name": "adamw"})
        tokens, pairs = model(rows["input_ids"])
        expected = F.cross_entropy(tokens.flatten(0, 1), rows["labels"].flatten())
        expected = expected + F.cross_entropy(pairs, rows["next_sentence_label"])
        gradients = torch.autograd.grad(expected, list(model.parameters()))
        training = prepare(model, settings, accelerator)
        length = sum((gradient**2).sum() for gradient in gradients).sqrt().item()
        pieces = {name: tensor.split(cuts) for name, tensor in rows.items()}
        parts = [{name: tensors[i] for name, tensors in pieces.items()} for i in range(len(cuts))]
        loss, norm = train_step(training, parts, 1.0, 1e9)
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        assert norm == pytest.approx(length, rel=1e-4)
        results.append([p.detach().clone() for p in model.parameters()])
    for parameters in results[1:]:
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(parameters, results[0], strict=True))
