"""Tiny configurations of every Hugging Face family, in several sizes."""

import math

from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from mini_llm.model import ModelConfig
from mini_llm.model.huggingface.layouts import LAYOUTS

VOCABULARY, PAD, EOS = 64, 3, 2
LABELS = {0: "good", 1: "bad", 2: "so so"}
AUTO = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classifier": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "questions": AutoModelForQuestionAnswering,
}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "intermediate_size": 40,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GATED = {"gated_mlp": True, "hidden_act": "gelu_new", "tie_word_embeddings": False, "logit_scale": 1.0}
# What a family's models set beside COMMON and the values that its layout fixes: one row per family, one entry per size.
FAMILIES = {
    "marian": [
        {"hidden_act": "relu", "embedding_scale": math.sqrt(32)},
        {"hidden_act": "silu", "num_decoder_layers": 1, "hidden_size": 36, "num_attention_heads": 3},
        {"hidden_act": "relu", "num_decoder_layers": 3, "hidden_size": 42, "num_attention_heads": 6},
    ],
    "gpt2": [{}, {"hidden_size": 30, "num_attention_heads": 6, "tie_word_embeddings": False, "hidden_act": "relu"}],
    "bert": [
        {"type_vocab_size": 2, "hidden_act": "gelu"},
        {"type_vocab_size": 1, "hidden_act": "relu", "head_act": "relu", "hidden_size": 42, "num_attention_heads": 6},
    ],
    "llama": [
        {},
        {"num_key_value_heads": 2, "head_dim": 14, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 1, "rope_scaling": LLAMA3, "tie_word_embeddings": False},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    "qwen3": [
        {"num_key_value_heads": 2},
        {"head_dim": 10, "num_attention_heads": 3, "num_key_value_heads": 1, "attention_bias": True},
        {
            "head_dim": 14,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 5,
        },
    ],
    "modernbert": [
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 4,
            "rope_theta": 160_000.0,
            "local_rope_theta": 10_000.0,
            "hidden_act": "gelu",
            "classifier_pooling": "mean",
        },
        {
            "hidden_act": "silu",
            "classifier_pooling": "cls",
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
            "head_bias": True,
            "sliding_window": 64,
            "local_rope_theta": 10_000.0,
        },
        {
            "hidden_size": 30,
            "num_attention_heads": 3,
            "hidden_act": "gelu",
            "decoder_bias": False,
            "classifier_pooling": "mean",
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 3,
            "local_rope_theta": 10_000.0,
        },
    ],
    "t5": [
        {"gated_mlp": False, "hidden_act": "relu", "logit_scale": 32**-0.5},
        {**GATED, "num_decoder_layers": 1, "head_dim": 7},
    ],
}
HEADS_OF = {name: list(dict.fromkeys(LAYOUTS[name].architectures.values())) for name in FAMILIES}


def make_config(family: str, head: str, size: int, **changes) -> ModelConfig:
    fixed = {key: value for key, value in LAYOUTS[family].fixed.items() if not callable(value)}
    labels = {"id2label": LABELS} if head in ("classifier", "tokens") else {}
    return ModelConfig(**{**COMMON, **fixed, **labels, **FAMILIES[family][size], **changes})
