"""Qwen3 (transformers models/qwen3): Llama with QK-norm per head, heads of any size, and sliding windows."""

from typing import Any

from mini_llm.model.config import ModelConfig
from mini_llm.model.huggingface.layouts import llama
from mini_llm.model.huggingface.layouts.layout import Layout


def _read_rest(theirs: dict[str, Any]) -> dict[str, Any]:
    rest = llama.read_rest(theirs)
    if theirs.get("use_sliding_window") and theirs.get("sliding_window"):
        first = theirs.get("max_window_layers", 28)
        layers = range(theirs["num_hidden_layers"])
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in layers]
        rest |= {"sliding_window": theirs["sliding_window"], "layer_types": theirs.get("layer_types") or kinds}
    return rest


def _write_rest(config: ModelConfig) -> dict[str, Any]:
    return {
        **llama.write_rest(config),
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": config.layer_types,
    }


LAYOUT = Layout(
    model_type="qwen3",
    architectures={
        "Qwen3ForCausalLM": "causal",
        "Qwen3ForSequenceClassification": "classifier",
        "Qwen3ForTokenClassification": "tokens",
        "Qwen3ForQuestionAnswering": "questions",
    },
    keys=llama.KEYS,
    defaults={**llama.DEFAULTS, "head_dim": 128},
    fixed={**llama.FIXED, "qk_norm": True},
    carried=("rope_theta", "rope_scaling", "sliding_window", "layer_types"),
    tensors={
        **llama.TENSORS,
        **{f"model.layers.{{i}}.self_attn.{x}_norm.weight": f"trunk.blocks.{{i}}.attn.{x}_norm.weight" for x in "qk"},
    },
    read_rest=_read_rest,
    write_rest=_write_rest,
    renamed=llama.RENAMED,
    prefixes=llama.PREFIXES,
    ignored=llama.LAYOUT.ignored,
)
