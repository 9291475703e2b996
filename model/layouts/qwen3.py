"""Qwen3 (transformers models/qwen3): pre-RMSNorm decoder, rotary positions, QK-norm per head, SwiGLU, no MLP bias."""

from typing import Any

from model.config import ModelConfig
from model.layouts.layout import SIZES, TOKEN_IDS, Layout, rope_theta


def _read_rest(theirs: dict[str, Any]) -> dict[str, Any]:
    rest: dict[str, Any] = {}
    parameters = theirs.get("rope_parameters") or theirs.get("rope_scaling")
    rest["rope_theta"] = rope_theta(parameters, theirs.get("rope_theta", 10_000.0))
    layers = theirs["num_hidden_layers"]
    if theirs.get("use_sliding_window") and theirs.get("sliding_window"):
        first = theirs.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
        rest |= {"sliding_window": theirs["sliding_window"], "layer_types": theirs.get("layer_types") or kinds}
    return rest


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        # transformers 4 and llama.cpp read the plain key.
        "rope_theta": config.rope_theta,
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": config.layer_types,
        "use_cache": True,
    }


_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "mlp_norm.weight",
    "self_attn.q_norm.weight": "attn.q_norm.weight",
    "self_attn.k_norm.weight": "attn.k_norm.weight",
    **{f"self_attn.{x}_proj.{p}": f"attn.{x}_proj.{p}" for x in "qkvo" for p in ("weight", "bias")},
    **{f"mlp.{x}_proj.weight": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}

LAYOUT = Layout(
    model_type="qwen3",
    architectures={"causal": "Qwen3ForCausalLM", "classifier": "Qwen3ForSequenceClassification"},
    keys={
        **{key: key for key in (*SIZES, *TOKEN_IDS)},
        "num_key_value_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "hidden_act": "hidden_act",
        "rms_norm_eps": "norm_eps",
    },
    defaults={
        "num_key_value_heads": None,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    },
    fixed={
        "causal": True,
        "norm": "rmsnorm",
        "norm_bias": False,
        "embedding_norm": False,
        "first_attention_norm": True,
        "qk_norm": True,
        "mlp_bias": False,
        "local_rope_theta": None,
        "decoder_bias": False,
        "classifier_pooling": "last",
    },
    tensors={
        "model.embed_tokens.weight": "trunk.embed.weight",
        **{f"model.layers.{{i}}.{theirs}": f"trunk.blocks.{{i}}.{ours}" for theirs, ours in _BLOCK.items()},
        "model.norm.weight": "trunk.norm.weight",
        "lm_head.weight": "lm_head.weight",
        "score.weight": "score.weight",
    },
    read_rest=_read_rest,
    write_rest=_write_rest,
)
