"""Models as other projects save them: random weights by transformers, with a tokenizer of tokenizer_kinds.py."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.tokenizer_kinds import reference, write_kind

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"max_position_embeddings": 256, "initializer_range": 0.2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "initializer_range": 0.3},
    ),
    "llama": ("LlamaConfig", SIZES),
    "qwen3": ("Qwen3Config", {**SIZES, "num_key_value_heads": 1, "head_dim": 16}),
    "bert": ("BertConfig", SIZES),
    "modernbert": ("ModernBertConfig", SIZES),
    "t5": (
        "T5Config",
        {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 2, "d_kv": 16, "initializer_factor": 3.0},
    ),
}


def save_model(kind: str, directory: Path, head: str, rows: int | None = None) -> tuple[Any, Any]:
    """Save a model with head "CausalLM", "Seq2SeqLM" or "SequenceClassification" and a tokenizer of `kind`.

    rows: rows of the embedding; None: one for each token. Returns the model and the tokenizer of transformers.
    """
    family = write_kind(kind, directory)
    auto = reference(kind, directory)
    name, sizes = CONFIGS[family]
    ids = {f"{name}_token_id": getattr(auto, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if family == "t5":
        ids["decoder_start_token_id"] = ids["pad_token_id"]
    if head == "SequenceClassification":
        ids["num_labels"] = 3
    config = getattr(transformers, name)(vocab_size=rows or len(auto), **sizes, **ids)
    torch.manual_seed(3)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
    model.save_pretrained(directory)
    return model, reference(kind, directory)
