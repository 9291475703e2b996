"""config.json files of well-known public models from the Hub: read, and built on the meta device to the right size."""

import pytest
import torch

from mini_llm.model import HEADS
from mini_llm.model.huggingface.layouts import LAYOUTS

GPT2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
BERT = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 50281,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_dropout": 0.0,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "deterministic_flash_attn": False,
    "embedding_dropout": 0.0,
    "eos_token_id": 50282,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "gradient_checkpointing": False,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "initializer_cutoff_factor": 2.0,
    "initializer_range": 0.02,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "sep_token_id": 50282,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0.dev0",
    "vocab_size": 50368,
}
T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"max_length": 200, "num_beams": 4, "prefix": "summarize: "}},
    "vocab_size": 32128,
}
T5_V1_1 = {
    **{key: value for key, value in T5.items() if key not in ("n_positions", "task_specific_params")},
    "d_ff": 1024,
    "feed_forward_proj": "gated-gelu",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "tie_word_embeddings": False,
}
# What the config says, and parameters as published (tied ones once).
KNOWN = {
    "gpt2": (GPT2, 124_439_808, {"head_dim": 64, "pad_token_id": None, "position": "learned"}),
    "bert-base-uncased": (BERT, 109_514_298, {"norm_place": "post", "type_vocab_size": 2, "pad_token_id": 0}),
    "Llama-3.2-1B": (LLAMA, 1_235_814_400, {"rope_theta": 500_000.0, "num_key_value_heads": 8, "qk_norm": False}),
    "Qwen3-0.6B": (QWEN3, 596_049_920, {"rope_theta": 1_000_000.0, "head_dim": 128, "qk_norm": True}),
    "ModernBERT-base": (MODERNBERT, 149_655_232, {"sliding_window": 64, "classifier_pooling": "mean"}),
    "t5-small": (T5, 60_506_624, {"hidden_act": "relu", "gated_mlp": False, "logit_scale": 512**-0.5}),
    "t5-v1_1-small": (T5_V1_1, 76_961_152, {"hidden_act": "gelu_new", "gated_mlp": True, "logit_scale": 1.0}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_public_configs_give_models_of_their_size(name):
    theirs, parameters, expected = KNOWN[name]
    layout = LAYOUTS[theirs["model_type"]]
    config = layout.read_config(theirs)
    assert {key: getattr(config, key) for key in expected} == expected
    with torch.device("meta"):
        model = HEADS[layout.head_of(theirs["architectures"])](config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_llama_keeps_its_rotary_scaling_and_modernbert_its_global_layers():
    llama = LAYOUTS["llama"].read_config(LLAMA)
    assert llama.rope_scaling == {**LLAMA["rope_scaling"], "rope_type": "llama3"}
    bert = LAYOUTS["modernbert"].read_config(MODERNBERT)
    assert [i for i, kind in enumerate(bert.layer_types) if kind == "full_attention"] == list(range(0, 22, 3))
    assert (bert.rope_theta, bert.local_rope_theta) == (160_000.0, 10_000.0)


@pytest.mark.parametrize("name", KNOWN)
def test_saved_configs_are_read_as_the_same_model(name):
    theirs, _, _ = KNOWN[name]
    layout = LAYOUTS[theirs["model_type"]]
    config = layout.read_config(theirs)
    assert layout.read_config(layout.write_config(config, layout.head_of(theirs["architectures"]))) == config
