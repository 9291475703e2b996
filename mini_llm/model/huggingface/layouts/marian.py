"""Marian (transformers models/marian): the post-LayerNorm, sinusoidal Transformer of Vaswani et al. 2017."""

import math
from typing import Any

from mini_llm.model.config import ModelConfig
from mini_llm.model.huggingface.layouts.layout import (
    TOKEN_IDS,
    Layout,
    LayoutError,
    Stored,
    equal_heads,
    even_head_dim,
    only_full_attention,
    under,
    with_biases,
)


def _attention(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{'out' if x == 'o' else x}_proj": f"{ours}.{x}_proj" for x in "qkvo"}


_ENCODER = {
    **_attention("self_attn", "attn"),
    "self_attn_layer_norm": "attn_norm",
    "fc1": "mlp.up_proj",
    "fc2": "mlp.down_proj",
    "final_layer_norm": "mlp_norm",
}
_DECODER = {**_ENCODER, **_attention("encoder_attn", "cross"), "encoder_attn_layer_norm": "cross_norm"}


def _read_rest(theirs: dict[str, Any]) -> dict[str, Any]:
    return {
        "embedding_scale": math.sqrt(theirs["d_model"]) if theirs.get("scale_embedding") else 1.0,
        "num_decoder_layers": theirs["decoder_layers"],
    }


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    scaled = config.embedding_scale != 1.0
    if scaled and config.embedding_scale != math.sqrt(config.hidden_size):
        raise LayoutError(f"marian needs embedding_scale = 1 or sqrt(hidden_size) (not {config.embedding_scale})")
    return {
        "scale_embedding": scaled,
        "decoder_layers": config.num_decoder_layers,
        "static_position_embeddings": True,
        "share_encoder_decoder_embeddings": True,
        "is_encoder_decoder": True,
        "forced_eos_token_id": None,
        "use_cache": True,
    }


LAYOUT = Layout(
    model_type="marian",
    architectures={"MarianMTModel": "seq2seq"},
    keys={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "encoder_layers": "num_hidden_layers",
        "encoder_attention_heads": "num_attention_heads",
        "decoder_attention_heads": "num_attention_heads",
        "encoder_ffn_dim": "intermediate_size",
        "decoder_ffn_dim": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
        "activation_function": "hidden_act",
        "init_std": "initializer_range",
        "tie_word_embeddings": "tie_word_embeddings",
        "decoder_start_token_id": "decoder_start_token_id",
        **{key: key for key in TOKEN_IDS},
    },
    defaults={
        "max_position_embeddings": 1024,
        "activation_function": "gelu",
        "init_std": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
    },
    required={"share_encoder_decoder_embeddings": True, "normalize_before": False, "normalize_embedding": False},
    fixed={
        "causal": False,
        "is_encoder_decoder": True,
        "norm": "layernorm",
        "norm_bias": True,
        "norm_eps": 1e-5,
        "norm_place": "post",
        "final_norm": False,
        "qk_norm": False,
        "position": "sinusoidal",
        "gated_mlp": False,
        "attention_bias": True,
        "mlp_bias": True,
        "decoder_bias": True,
        "num_key_value_heads": equal_heads,
        "head_dim": even_head_dim,
        "layer_types": only_full_attention,
        # transformers has no classifier of this family.
        "classifier_head": "transform",
        "init": "xavier",
    },
    carried=("embedding_scale", "num_decoder_layers"),
    tensors={
        "model.shared.weight": "trunk.encoder.embed.weight",
        **under("model.encoder.layers.{i}.", "trunk.encoder.blocks.{i}.", with_biases(_ENCODER)),
        **under("model.decoder.layers.{i}.", "trunk.decoder.blocks.{i}.", with_biases(_DECODER)),
        "lm_head.weight": "lm_head.weight",
        "final_logits_bias": Stored(("lm_head.bias",), leading=True),
    },
    read_rest=_read_rest,
    write_rest=_write_rest,
    ignored=("*.embed_positions.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
)
