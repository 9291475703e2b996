"""ModernBERT (transformers models/modernbert): pre-LayerNorm encoder, rotary positions, GeGLU, local/global layers."""

from typing import Any

from mini_llm.model.config import ModelConfig
from mini_llm.model.huggingface.layouts.layout import SIZES, TOKEN_IDS, Layout, LayoutError, equal_heads, even_head_dim
from mini_llm.model.huggingface.layouts.llama import read_rope

GLOBAL_THETA, LOCAL_THETA = 160_000.0, 10_000.0


def _theta(parameters: dict[str, Any] | None, fallback: float) -> float:
    found = read_rope(parameters, fallback)
    if found["rope_scaling"]:
        raise LayoutError("config.json: only rope_type 'default' is supported for modernbert")
    return found["rope_theta"]


def _read_rest(theirs: dict[str, Any]) -> dict[str, Any]:
    layers, every = theirs["num_hidden_layers"], theirs.get("global_attn_every_n_layers", 3)
    kinds = ["sliding_attention" if i % every else "full_attention" for i in range(layers)]
    parameters = theirs.get("rope_parameters") or {}
    return {
        "layer_types": theirs.get("layer_types") or kinds,
        # They count the whole window, we count the keys on each side.
        "sliding_window": theirs.get("local_attention", 128) // 2,
        "rope_theta": _theta(parameters.get("full_attention"), theirs.get("global_rope_theta", GLOBAL_THETA)),
        "local_rope_theta": _theta(parameters.get("sliding_attention"), theirs.get("local_rope_theta") or LOCAL_THETA),
    }


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    local_theta = config.local_rope_theta or config.rope_theta
    window = config.sliding_window or 64
    kinds = config.layer_types
    gaps = [
        n for n in range(1, len(kinds) + 1) if all((k == "full_attention") == (i % n == 0) for i, k in enumerate(kinds))
    ]
    return {
        "layer_types": kinds,
        # llama.cpp's converter and transformers 4 read the plain keys.
        **({"global_attn_every_n_layers": gaps[0]} if gaps else {}),
        "local_attention": 2 * window,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": local_theta,
    }


_ATTENTION = "trunk.blocks.{i}.attn"

LAYOUT = Layout(
    model_type="modernbert",
    architectures={
        "ModernBertForMaskedLM": "masked",
        "ModernBertForSequenceClassification": "classifier",
        "ModernBertForTokenClassification": "tokens",
        "ModernBertForQuestionAnswering": "questions",
    },
    keys={
        **{key: key for key in (*SIZES, *TOKEN_IDS)},
        "attention_bias": "attention_bias",
        "cls_token_id": "cls_token_id",
        "sep_token_id": "sep_token_id",
        "hidden_activation": "hidden_act",
        "mlp_bias": "mlp_bias",
        "norm_eps": "norm_eps",
        "norm_bias": "norm_bias",
        "decoder_bias": "decoder_bias",
        "classifier_activation": "head_act",
        "classifier_bias": "head_bias",
        "classifier_pooling": "classifier_pooling",
    },
    defaults={
        "initializer_range": 0.02,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 50281,
        "eos_token_id": 50282,
        "pad_token_id": 50283,
        "cls_token_id": 50281,
        "sep_token_id": 50282,
        "hidden_activation": "gelu",
        "mlp_bias": False,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "decoder_bias": True,
        "classifier_activation": "gelu",
        "classifier_bias": False,
        "classifier_pooling": "cls",
    },
    fixed={
        "causal": False,
        "norm": "layernorm",
        "embedding_norm": True,
        "first_attention_norm": False,
        "qk_norm": False,
        "num_key_value_heads": equal_heads,
        "head_dim": even_head_dim,
        "classifier_head": "transform",
    },
    carried=("layer_types", "sliding_window", "rope_theta", "local_rope_theta"),
    tensors={
        "model.embeddings.tok_embeddings.weight": "trunk.embed.weight",
        **{f"model.embeddings.norm.{p}": f"trunk.embed_norm.{p}" for p in ("weight", "bias")},
        **{f"model.layers.{{i}}.attn_norm.{p}": f"trunk.blocks.{{i}}.attn_norm.{p}" for p in ("weight", "bias")},
        **{f"model.layers.{{i}}.mlp_norm.{p}": f"trunk.blocks.{{i}}.mlp_norm.{p}" for p in ("weight", "bias")},
        **{
            f"model.layers.{{i}}.attn.Wqkv.{p}": tuple(f"{_ATTENTION}.{x}_proj.{p}" for x in "qkv")
            for p in ("weight", "bias")
        },
        **{f"model.layers.{{i}}.attn.Wo.{p}": f"{_ATTENTION}.o_proj.{p}" for p in ("weight", "bias")},
        **{
            f"model.layers.{{i}}.mlp.Wi.{p}": tuple(f"trunk.blocks.{{i}}.mlp.{x}_proj.{p}" for x in ("gate", "up"))
            for p in ("weight", "bias")
        },
        **{f"model.layers.{{i}}.mlp.Wo.{p}": f"trunk.blocks.{{i}}.mlp.down_proj.{p}" for p in ("weight", "bias")},
        **{f"model.final_norm.{p}": f"trunk.norm.{p}" for p in ("weight", "bias")},
        **{f"head.dense.{p}": f"head.dense.{p}" for p in ("weight", "bias")},
        **{f"head.norm.{p}": f"head.norm.{p}" for p in ("weight", "bias")},
        **{f"decoder.{p}": f"lm_head.{p}" for p in ("weight", "bias")},
        **{f"{x}.{p}": f"{x}.{p}" for x in ("classifier", "qa_outputs") for p in ("weight", "bias")},
    },
    prefixes={"questions": {"qa_outputs.": "classifier."}},
    read_rest=_read_rest,
    write_rest=_write_rest,
    # Files of the model without head have no prefix.
    renamed=((r"^(embeddings|layers|final_norm)\.", r"model.\1."),),
)
