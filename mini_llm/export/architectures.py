"""Each family in llama.cpp: models it cannot represent, GGUF metadata and tensors. Source: src/models/*.cpp and
conversion/*.py of llama.cpp. D is head_dim."""

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
_EMBEDDINGS = "llama.cpp uses this family only for embeddings and would drop its language-model head"
OTHER_FAMILIES = {
    "bert": _EMBEDDINGS,
    "modernbert": _EMBEDDINGS,
    "marian": "llama.cpp has no architecture with sinusoidal positions and post-norm layers",
}
# llama.cpp reads these as F32 whatever the file's type; `llama-quantize` does not quantize them either.
ALWAYS_F32 = ("_norm.weight", "position_embd.weight", "attn_rel_b.weight", "rope_freqs.weight")
T5_MAX_DISTANCE = 128  # hard-coded in llama_relative_position_bucket of llama.cpp


def refuse_other_models(source: str, layout: Layout, head: str | None) -> None:
    """Raise CheckpointError for a family or head that llama.cpp does not support. `source` names the directory."""
    family = layout.model_type
    if family in OTHER_FAMILIES:
        raise CheckpointError(
            f"{source}: llama.cpp does not support this {family} model: {OTHER_FAMILIES[family]}. "
            f"Supported families: {', '.join(ARCHITECTURES)}"
        )
    if head in ("classifier", "tokens", "questions"):
        raise CheckpointError(
            f"{source}: llama.cpp does not support a {family} classifier: its {family} graph ends in next-token logits "
            f"and has no classification head. Use: python -m finetune predict {source} FILE"
        )


def refuse_other_graphs(source: str, family: str, config: ModelConfig) -> None:
    """Raise CheckpointError naming the config keys whose values llama.cpp does not implement."""
    if problems := [f"{key}={found} (needs {needed})" for key, needed, found in _needs(family, config)]:
        raise CheckpointError(f"{source}: llama.cpp does not support this {family} model: {', '.join(problems)}")


def _needs(family: str, config: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, value that llama.cpp computes with, value of the model) where they differ."""
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
            # llama.cpp's cache has one entry per encoder layer.
            "num_decoder_layers": (
                f"at most num_layers = {config.num_hidden_layers}",
                config.num_decoder_layers if (config.num_decoder_layers or 0) > config.num_hidden_layers else None,
            ),
        },
    }[family]
    return ((key, needed, found) for key, (needed, found) in needs.items() if found not in (needed, None))


def _t5_activation(config: ModelConfig) -> str | None:
    """Describe the MLP activation, or return None if llama.cpp implements it."""
    known = ("gelu_new", True), ("relu", False)
    return None if (config.hidden_act, config.gated_mlp) in known else f"{config.hidden_act}, gated: {config.gated_mlp}"


def metadata(family: str, config: ModelConfig) -> dict[str, Any]:
    """Return the metadata of the architecture as key -> value; floats are written as float32, integers as uint32."""
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
    """Yield (llama.cpp's name, fp32 tensor) for every tensor of the state dict, in llama.cpp's layout."""
    blocks = max(config.num_hidden_layers, config.num_decoder_layers or 0)
    names = gguf.get_tensor_name_map(ARCHITECTURES[layout.model_type], blocks)
    theirs = layout.to_theirs(state, config)
    changes = CHANGES.get(layout.model_type, {})
    for name, entry in layout.names(config):
        # Without an output matrix, llama.cpp uses the embedding.
        if name not in theirs or (config.tie_word_embeddings and entry.ours == ("lm_head.weight",)):
            continue
        # GGUF stores matrices as (out, in), GPT-2's files as (in, out).
        tensor = theirs[name].T if entry.transposed and theirs[name].dim() == 2 else theirs[name]
        for part, change in changes.items():
            tensor = change(tensor, config) if f".{part}." in f".{name}" else tensor
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise CheckpointError(f"{name}: llama.cpp has no such tensor in a {layout.model_type} model")
        yield known, tensor.detach()
    if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
        yield f"{gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS]}.weight", rope_factors(config)


def interleave(rows: Tensor, heads: int) -> Tensor:
    """Permute rows (heads * D, ...) so that rotary pairs, here D / 2 apart, become adjacent: llama.cpp's `llama` graph
    rotates adjacent pairs (LlamaModel.permute of its converter). Attention scores do not change."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def scale_norm(weight: Tensor, config: ModelConfig) -> Tensor:
    """Fold T5's logit scale, which llama.cpp does not support, into the weight of the final norm."""
    return weight * config.logit_scale


CHANGES: dict[str, dict[str, Callable[[Tensor, ModelConfig], Tensor]]] = {
    "llama": {
        "q_proj": lambda rows, config: interleave(rows, config.num_attention_heads),
        "k_proj": lambda rows, config: interleave(rows, config.num_key_value_heads),
    },
    "t5": {"decoder.final_layer_norm": scale_norm},
}


def rope_factors(config: ModelConfig) -> Tensor:
    """Return the divisor of each rotary frequency under Llama 3's RoPE scaling: (D / 2,) (Dubey et al. 2024)."""
    scaling = config.rope_scaling or {}
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    turns = scaling["original_max_position_embeddings"] * config.rope_theta**-exponents / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / (kept + (1 - kept) / scaling["factor"])
