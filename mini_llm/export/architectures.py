"""What llama.cpp computes for each family: what it cannot hold, its metadata, and its tensors (src/models/*.cpp and
conversion/*.py of llama.cpp). H heads, D head_dim."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import torch
from gguf import Keys
from torch import Tensor

from mini_llm.engine.errors import CheckpointError
from mini_llm.model import ModelConfig
from mini_llm.model.huggingface.layouts import Layout

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "t5": gguf.MODEL_ARCH.T5,
}
_EMBEDDINGS = "llama.cpp knows this family for embeddings alone: it has no head that predicts words and would drop it"
OTHER_FAMILIES = {
    "bert": _EMBEDDINGS,
    "modernbert": _EMBEDDINGS,
    "marian": "llama.cpp has no architecture with sinusoidal positions and norms after the residual sum",
}
# Read by llama.cpp as F32 whatever the file's type: `llama-quantize` leaves them out too.
ALWAYS_F32 = ("_norm.weight", "position_embd.weight", "attn_rel_b.weight", "rope_freqs.weight")
# llama.cpp fixes it in llama_relative_position_bucket.
T5_MAX_DISTANCE = 128


def refuse_other_models(source: str, layout: Layout, head: str | None) -> None:
    """Raises CheckpointError for a family or head that llama.cpp has no place for. `source` names the directory."""
    family = layout.model_type
    if family in OTHER_FAMILIES:
        raise CheckpointError(
            f"{source}: llama.cpp cannot hold this {family} model: {OTHER_FAMILIES[family]}. "
            f"It can hold {', '.join(ARCHITECTURES)}"
        )
    if head == "classifier":
        raise CheckpointError(
            f"{source}: llama.cpp cannot hold a {family} classifier: its {family} model ends in the logits of the "
            f"next token and has no place for labels. Use: python -m finetune predict {source} FILE"
        )


def refuse_other_graphs(source: str, family: str, config: ModelConfig) -> None:
    """Raises CheckpointError naming the keys for which llama.cpp computes something else than the model."""
    if problems := [f"{key} = {needed} (not {found})" for key, needed, found in _needs(family, config)]:
        raise CheckpointError(
            f"{source}: llama.cpp cannot hold this {family} model: its graph has {', '.join(problems)}"
        )


def _needs(family: str, config: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """(key, the value that llama.cpp computes with, ours) where they differ."""
    rope = (config.rope_scaling or {}).get("rope_type", "default")
    needs: dict[str, tuple[Any, Any]] = {
        "llama": {"hidden_act": ("silu", config.hidden_act)},
        "qwen3": {
            "hidden_act": ("silu", config.hidden_act),
            "attention_bias": (False, config.attention_bias),
            "layer_types": ("full_attention", next((k for k in config.layer_types if k != "full_attention"), None)),
            "rope_type": ("default or linear", rope if rope not in ("default", "linear") else None),
        },
        "gpt2": {"activation_function": ("gelu_new", config.hidden_act)},
        "t5": {
            "feed_forward_proj": ("relu or gated-gelu", _t5_activation(config)),
            "relative_attention_max_distance": (T5_MAX_DISTANCE, config.relative_max_distance),
            # Its cache has one entry per layer of the encoder.
            "num_decoder_layers": (
                f"at most num_layers = {config.num_hidden_layers}",
                config.num_decoder_layers if (config.num_decoder_layers or 0) > config.num_hidden_layers else None,
            ),
        },
    }[family]
    return ((key, needed, found) for key, (needed, found) in needs.items() if found not in (needed, None))


def _t5_activation(config: ModelConfig) -> str | None:
    """None where llama.cpp has it."""
    known = ("gelu_new", True), ("relu", False)
    return None if (config.hidden_act, config.gated_mlp) in known else f"{config.hidden_act}, gated: {config.gated_mlp}"


def metadata(family: str, config: ModelConfig) -> dict[str, Any]:
    """Key -> value of the architecture; a float is written as float32, an integer as uint32."""
    values = {
        Keys.LLM.VOCAB_SIZE: config.vocab_size,
        Keys.LLM.CONTEXT_LENGTH: config.max_position_embeddings,
        Keys.LLM.EMBEDDING_LENGTH: config.hidden_size,
        Keys.LLM.BLOCK_COUNT: config.num_hidden_layers,
        Keys.LLM.FEED_FORWARD_LENGTH: config.intermediate_size,
        Keys.Attention.HEAD_COUNT: config.num_attention_heads,
        Keys.Attention.HEAD_COUNT_KV: config.num_key_value_heads,
        Keys.Attention.KEY_LENGTH: config.head_dim,
        Keys.Attention.VALUE_LENGTH: config.head_dim,
    }
    eps = Keys.Attention.LAYERNORM_RMS_EPS if config.norm == "rmsnorm" else Keys.Attention.LAYERNORM_EPS
    values[eps] = float(config.norm_eps)
    if config.position == "rotary":
        values[Keys.Rope.DIMENSION_COUNT] = config.head_dim
        values[Keys.Rope.FREQ_BASE] = float(config.rope_theta)
        if config.rope_scaling and config.rope_scaling["rope_type"] == "linear":
            values[Keys.Rope.SCALING_TYPE] = gguf.RopeScalingType.LINEAR.value
            values[Keys.Rope.SCALING_FACTOR] = float(config.rope_scaling["factor"])
    if config.is_encoder_decoder:
        values[Keys.LLM.DECODER_BLOCK_COUNT] = config.num_decoder_layers
        values[Keys.LLM.DECODER_START_TOKEN_ID] = config.decoder_start_token_id
        values[Keys.Attention.REL_BUCKETS_COUNT] = config.relative_buckets
    name = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[family]]
    return {key.format(arch=name): value for key, value in values.items()}


def tensors(layout: Layout, config: ModelConfig, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(llama.cpp's name, tensor in fp32) of every tensor of a model's state dict, as llama.cpp computes with it."""
    blocks = max(config.num_hidden_layers, config.num_decoder_layers or 0)
    names = gguf.get_tensor_name_map(ARCHITECTURES[layout.model_type], blocks)
    theirs = layout.to_theirs(state, config)
    changes = CHANGES.get(layout.model_type, {})
    for name, entry in layout.names(config):
        # llama.cpp takes the embedding where there is no output matrix.
        if name not in theirs or (config.tie_word_embeddings and entry.ours == ("lm_head.weight",)):
            continue
        # GGUF holds matrices as (out, in), GPT-2's files as (in, out).
        tensor = theirs[name].T if entry.transposed and theirs[name].dim() == 2 else theirs[name]
        for part, change in changes.items():
            tensor = change(tensor, config) if f".{part}." in f".{name}" else tensor
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.detach()
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        yield f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight", rope_factors(config)


def interleave(rows: Tensor, heads: int) -> Tensor:
    """Rows (heads * D, ...) with the rotary pairs, D / 2 apart here, side by side: llama.cpp's `llama` rotates
    neighbours (LlamaModel.permute of its converter). Scores between query and key stay the same."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def scale_norm(weight: Tensor, config: ModelConfig) -> Tensor:
    """The last norm with T5's logit scale in it, for which llama.cpp has no place."""
    return weight * config.logit_scale


CHANGES: dict[str, dict[str, Callable[[Tensor, ModelConfig], Tensor]]] = {
    "llama": {
        "q_proj": lambda rows, config: interleave(rows, config.num_attention_heads),
        "k_proj": lambda rows, config: interleave(rows, config.num_key_value_heads),
    },
    "t5": {"decoder.final_layer_norm": scale_norm},
}


def rope_factors(config: ModelConfig) -> Tensor:
    """What each rotary frequency is divided by under Llama 3's scaling (D / 2,) (Dubey et al. 2024)."""
    scaling = config.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    turns = scaling["original_max_position_embeddings"] * config.rope_theta**-exponents / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / (kept + (1 - kept) / scaling["factor"])
