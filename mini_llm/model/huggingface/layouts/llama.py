"""Llama (transformers models/llama): pre-RMSNorm decoder, rotary positions, grouped key-value heads, SwiGLU."""

import math
from typing import Any

from mini_llm.model.config import ModelConfig
from mini_llm.model.huggingface.layouts.layout import (
    SIZES,
    TOKEN_IDS,
    Layout,
    LayoutError,
    only_full_attention,
    under,
    with_biases,
)

ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_rope(parameters: dict[str, Any] | None, theta: float) -> dict[str, Any]:
    """rope_theta and rope_scaling from a `rope_parameters` or `rope_scaling` entry; `theta` is the default."""
    parameters = parameters or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ROPE_KEYS:
        raise LayoutError(f"config.json: rope_type '{kind}' is not supported; known are {', '.join(ROPE_KEYS)}")
    missing = [key for key in ROPE_KEYS[kind] if key not in parameters]
    if missing:
        raise LayoutError(f"config.json: rope_type '{kind}' needs {', '.join(missing)}")
    numbers = {key: parameters[key] for key in ROPE_KEYS[kind]}
    wrong = [key for key, value in numbers.items() if not 0 < float(value) < math.inf]
    if wrong:
        raise LayoutError(
            f"config.json: {wrong[0]} of rope_type '{kind}' must be positive, found {numbers[wrong[0]]!r}"
        )
    scaling = {"rope_type": kind, **numbers}
    return {
        "rope_theta": float(parameters.get("rope_theta", theta)),
        "rope_scaling": None if kind == "default" else scaling,
    }


def read_rest(theirs: dict[str, Any]) -> dict[str, Any]:
    return read_rope(theirs.get("rope_parameters") or theirs.get("rope_scaling"), theirs.get("rope_theta", 10_000.0))


def write_rest(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling or {"rope_type": "default"}
    return {
        "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
        # transformers 4 and llama.cpp read the plain keys.
        "rope_theta": config.rope_theta,
        **({"rope_scaling": config.rope_scaling} if config.rope_scaling else {}),
        "use_cache": True,
    }


KEYS = {
    **{key: key for key in (*SIZES, *TOKEN_IDS)},
    "attention_bias": "attention_bias",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_act": "hidden_act",
    "rms_norm_eps": "norm_eps",
}
DEFAULTS = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FIXED = {"causal": True, "classifier_head": "linear", "head_act": "gelu"}
_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "mlp_norm.weight",
    **with_biases({f"self_attn.{x}_proj": f"attn.{x}_proj" for x in "qkvo"}),
    **with_biases({f"mlp.{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")}),
}
TENSORS = {
    "model.embed_tokens.weight": "trunk.embed.weight",
    **under("model.layers.{i}.", "trunk.blocks.{i}.", _BLOCK),
    "model.norm.weight": "trunk.norm.weight",
    "lm_head.weight": "lm_head.weight",
    "score.weight": "score.weight",
    **with_biases({"classifier": "classifier", "qa_outputs": "qa_outputs"}),
}
# Their class for questions calls the trunk "transformer".
PREFIXES = {"tokens": {"classifier.": "score."}, "questions": {"model.": "transformer."}}
# Files of the model without head have no prefix.
RENAMED = ((r"^(embed_tokens|layers|norm)\.", r"model.\1."),)

LAYOUT = Layout(
    model_type="llama",
    architectures={
        "LlamaForCausalLM": "causal",
        "LlamaForSequenceClassification": "classifier",
        "LlamaForTokenClassification": "tokens",
        "LlamaForQuestionAnswering": "questions",
    },
    keys={**KEYS, "mlp_bias": "mlp_bias"},
    defaults={**DEFAULTS, "mlp_bias": False},
    fixed={**FIXED, "qk_norm": False, "layer_types": only_full_attention},
    carried=("rope_theta", "rope_scaling"),
    tensors=TENSORS,
    read_rest=read_rest,
    write_rest=write_rest,
    renamed=RENAMED,
    prefixes=PREFIXES,
    ignored=("*.rotary_emb.inv_freq",),
)
