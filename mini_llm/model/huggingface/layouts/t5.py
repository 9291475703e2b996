"""T5 (transformers models/t5): pre-RMSNorm encoder-decoder, relative positions, no biases, no 1/sqrt(D)."""

from typing import Any

from mini_llm.model.config import ModelConfig
from mini_llm.model.huggingface.layouts.layout import (
    Layout,
    LayoutError,
    Stored,
    equal_heads,
    only_full_attention,
    read_activation,
    under,
)

_ATTENTION = {"q.weight": "q_proj.weight", "k.weight": "k_proj.weight", "v.weight": "v_proj.weight"}
_ATTENTION["o.weight"] = "o_proj.weight"


def _mlp(last: int) -> dict[str, str]:
    names = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}
    return {f"layer.{last}.DenseReluDense.{a}.weight": f"mlp.{b}.weight" for a, b in names.items()}


def _ungated(stack: str, last: int) -> dict[str, Stored]:
    """A model without gate has a `wi` instead of `wi_1`."""
    ours = f"trunk.{stack}.blocks.{{i}}.mlp.up_proj.weight"
    names = {"wi": False, "wi_1": True}
    return {
        f"{stack}.block.{{i}}.layer.{last}.DenseReluDense.{name}.weight": Stored((ours,), when=("gated_mlp", gated))
        for name, gated in names.items()
    }


_ENCODER = {
    **under("layer.0.SelfAttention.", "attn.", _ATTENTION),
    "layer.0.layer_norm.weight": "attn_norm.weight",
    **_mlp(1),
    "layer.1.layer_norm.weight": "mlp_norm.weight",
}
_DECODER = {
    **under("layer.0.SelfAttention.", "attn.", _ATTENTION),
    "layer.0.layer_norm.weight": "attn_norm.weight",
    **under("layer.1.EncDecAttention.", "cross.", _ATTENTION),
    "layer.1.layer_norm.weight": "cross_norm.weight",
    **_mlp(2),
    "layer.2.layer_norm.weight": "mlp_norm.weight",
}
_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _read_rest(theirs: dict[str, Any]) -> dict[str, Any]:
    *gated, act = theirs.get("feed_forward_proj", "relu").split("-")
    # Their "gated-gelu" is the tanh approximation.
    act = "gelu_new" if gated and act == "gelu" else act
    scaled = theirs.get("scale_decoder_outputs", theirs.get("tie_word_embeddings", True))
    return {
        "gated_mlp": bool(gated),
        "hidden_act": read_activation("feed_forward_proj", act),
        # v1.0, with a tied head, scales its input; v1.1, untied, does not.
        "logit_scale": theirs["d_model"] ** -0.5 if scaled else 1.0,
        "num_decoder_layers": theirs.get("num_decoder_layers") or theirs["num_layers"],
        "max_position_embeddings": theirs.get("n_positions", 512),
    }


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    scale = config.hidden_size**-0.5 if config.tie_word_embeddings else 1.0
    if config.logit_scale != scale:
        raise LayoutError(f"t5 needs logit_scale = {scale} (not {config.logit_scale})")
    act = config.hidden_act
    if config.gated_mlp and act == "gelu":
        raise LayoutError("t5 needs hidden_act = gelu_new (not gelu) where gated_mlp is set")
    return {
        "feed_forward_proj": f"gated-{'gelu' if act == 'gelu_new' else act}" if config.gated_mlp else act,
        "num_decoder_layers": config.num_decoder_layers,
        "n_positions": config.max_position_embeddings,
        "is_encoder_decoder": True,
        "use_cache": True,
    }


LAYOUT = Layout(
    model_type="t5",
    architectures={"T5ForConditionalGeneration": "seq2seq", "T5ForSequenceClassification": "classifier"},
    keys={
        "vocab_size": "vocab_size",
        "d_model": "hidden_size",
        "d_kv": "head_dim",
        "d_ff": "intermediate_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "relative_attention_num_buckets": "relative_buckets",
        "relative_attention_max_distance": "relative_max_distance",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_word_embeddings",
        "decoder_start_token_id": "decoder_start_token_id",
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "pad_token_id": "pad_token_id",
    },
    defaults={
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": True,
        "decoder_start_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
    fixed={
        "causal": False,
        "is_encoder_decoder": True,
        "qk_norm": False,
        "attention_scale": 1.0,
        "position": "relative",
        "num_key_value_heads": equal_heads,
        "layer_types": only_full_attention,
        "classifier_head": "pooler",
        "classifier_pooling": "eos",
        "init": "fan_in",
    },
    carried=("gated_mlp", "hidden_act", "logit_scale", "num_decoder_layers", "max_position_embeddings"),
    tensors={
        "shared.weight": "trunk.encoder.embed.weight",
        **{f"{x}.{_BIAS}": f"trunk.{x}.relative_bias.weight" for x in ("encoder", "decoder")},
        **under("encoder.block.{i}.", "trunk.encoder.blocks.{i}.", _ENCODER),
        **under("decoder.block.{i}.", "trunk.decoder.blocks.{i}.", _DECODER),
        **_ungated("encoder", 1),
        **_ungated("decoder", 2),
        **{f"{x}.final_layer_norm.weight": f"trunk.{x}.norm.weight" for x in ("encoder", "decoder")},
        "lm_head.weight": "lm_head.weight",
        **{f"classification_head.dense.{p}": f"pooler.dense.{p}" for p in ("weight", "bias")},
        **{f"classification_head.out_proj.{p}": f"classifier.{p}" for p in ("weight", "bias")},
    },
    read_rest=_read_rest,
    write_rest=_write_rest,
    renamed=((r"^transformer\.", ""),),
    ignored=(
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ),
)
