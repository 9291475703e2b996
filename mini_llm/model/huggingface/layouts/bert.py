"""BERT (transformers models/bert): post-LayerNorm encoder, learned positions, token types, GELU, biases."""

from typing import Any

from mini_llm.model.config import ModelConfig
from mini_llm.model.huggingface.layouts.layout import (
    SIZES,
    TOKEN_IDS,
    Layout,
    equal_heads,
    even_head_dim,
    only_full_attention,
    read_activation,
    under,
    with_biases,
)

_BLOCK = {
    **{f"attention.self.{name}": f"attn.{name[0]}_proj" for name in ("query", "key", "value")},
    "attention.output.dense": "attn.o_proj",
    "attention.output.LayerNorm": "attn_norm",
    "intermediate.dense": "mlp.up_proj",
    "output.dense": "mlp.down_proj",
    "output.LayerNorm": "mlp_norm",
}


def _read_rest(theirs: dict[str, Any]) -> dict[str, Any]:
    return {
        "next_sentence": "BertForPreTraining" in (theirs.get("architectures") or []),
        # BERT has one activation for layers and prediction head.
        "head_act": read_activation("hidden_act", theirs.get("hidden_act", "gelu")),
    }


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    return {"architectures": ["BertForPreTraining"]} if config.next_sentence and not config.id2label else {}


LAYOUT = Layout(
    model_type="bert",
    architectures={
        "BertForMaskedLM": "masked",
        "BertForPreTraining": "masked",
        "BertForSequenceClassification": "classifier",
        "BertForTokenClassification": "tokens",
        "BertForQuestionAnswering": "questions",
    },
    keys={
        **{key: key for key in (*SIZES, *TOKEN_IDS)},
        "cls_token_id": "cls_token_id",
        "sep_token_id": "sep_token_id",
        "hidden_act": "hidden_act",
        "type_vocab_size": "type_vocab_size",
        "layer_norm_eps": "norm_eps",
    },
    defaults={
        "hidden_act": "gelu",
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "cls_token_id": None,
        "sep_token_id": None,
    },
    required={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    fixed={
        "causal": False,
        "norm": "layernorm",
        "norm_bias": True,
        "norm_place": "post",
        "embedding_norm": True,
        "final_norm": False,
        "qk_norm": False,
        "position": "learned",
        "gated_mlp": False,
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": equal_heads,
        "head_dim": even_head_dim,
        "layer_types": only_full_attention,
        "head_act": lambda config: config.hidden_act,
        "head_bias": True,
        "decoder_bias": True,
        "classifier_head": "pooler",
        "classifier_pooling": "cls",
        "init": "normal",
    },
    carried=("next_sentence",),
    tensors={
        "bert.embeddings.word_embeddings.weight": "trunk.embed.weight",
        "bert.embeddings.position_embeddings.weight": "trunk.embed_position.weight",
        "bert.embeddings.token_type_embeddings.weight": "trunk.embed_type.weight",
        **with_biases({"bert.embeddings.LayerNorm": "trunk.embed_norm"}),
        **under("bert.encoder.layer.{i}.", "trunk.blocks.{i}.", with_biases(_BLOCK)),
        **with_biases({"bert.pooler.dense": "pooler.dense", "cls.seq_relationship": "next_sentence"}),
        **with_biases({"cls.predictions.transform.dense": "head.dense"}),
        **with_biases({"cls.predictions.transform.LayerNorm": "head.norm"}),
        "cls.predictions.decoder.weight": "lm_head.weight",
        "cls.predictions.bias": "lm_head.bias",
        **with_biases({"classifier": "classifier", "qa_outputs": "qa_outputs"}),
    },
    read_rest=_read_rest,
    write_rest=_write_rest,
    renamed=(
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
        (r"^(embeddings|encoder|pooler)\.", r"bert.\1."),
        # Two names for one tensor.
        (r"^cls\.predictions\.decoder\.bias$", "cls.predictions.bias"),
    ),
    ignored=("*.position_ids",),
)
