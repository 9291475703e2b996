"""GPT-2 (transformers models/gpt2): pre-LayerNorm decoder, learned positions, biases; matrices stored (in, out)."""

from mini_llm.model.huggingface.layouts.layout import (
    Layout,
    Stored,
    equal_heads,
    even_head_dim,
    only_full_attention,
    with_biases,
)

_MATRICES = {
    "attn.c_attn": tuple(f"attn.{x}_proj" for x in "qkv"),
    "attn.c_proj": ("attn.o_proj",),
    "mlp.c_fc": ("mlp.up_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}
_NORMS = {"h.{i}.ln_1": "blocks.{i}.attn_norm", "h.{i}.ln_2": "blocks.{i}.mlp_norm", "ln_f": "norm"}

LAYOUT = Layout(
    model_type="gpt2",
    architectures={
        "GPT2LMHeadModel": "causal",
        "GPT2ForSequenceClassification": "classifier",
        "GPT2ForTokenClassification": "tokens",
        "GPT2ForQuestionAnswering": "questions",
    },
    keys={
        "vocab_size": "vocab_size",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "norm_eps",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_word_embeddings",
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "pad_token_id": "pad_token_id",
    },
    defaults={
        "n_positions": 1024,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": None,
    },
    required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    fixed={
        "causal": True,
        "norm": "layernorm",
        "norm_bias": True,
        "qk_norm": False,
        "position": "learned",
        "gated_mlp": False,
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": equal_heads,
        "head_dim": even_head_dim,
        "layer_types": only_full_attention,
        "classifier_head": "linear",
        "init": "scaled",
    },
    tensors={
        "transformer.wte.weight": "trunk.embed.weight",
        "transformer.wpe.weight": "trunk.embed_position.weight",
        **{
            f"transformer.{theirs}.{part}": f"trunk.{ours}.{part}"
            for theirs, ours in _NORMS.items()
            for part in ("weight", "bias")
        },
        **{
            f"transformer.h.{{i}}.{theirs}.{part}": Stored(
                tuple(f"trunk.blocks.{{i}}.{name}.{part}" for name in ours), transposed=part == "weight"
            )
            for theirs, ours in _MATRICES.items()
            for part in ("weight", "bias")
        },
        "lm_head.weight": "lm_head.weight",
        "score.weight": "score.weight",
        **with_biases({"classifier": "classifier", "qa_outputs": "qa_outputs"}),
    },
    renamed=((r"^(wte|wpe|h|ln_f)\.", r"transformer.\1."),),
    ignored=("*.attn.bias", "*.attn.masked_bias"),
)
