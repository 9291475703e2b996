"""The Transformer: configuration, layers, trunk, heads, and Hugging Face directories in and out."""

from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.heads import HEADS, CausalLM, MaskedLM, Seq2SeqLM, SequenceClassifier
from mini_llm.model.huggingface.directory import ModelDirectoryError, load_model, save_model

__all__ = [
    "HEADS",
    "CausalLM",
    "KVCache",
    "MaskedLM",
    "ModelConfig",
    "ModelDirectoryError",
    "Seq2SeqLM",
    "SequenceClassifier",
    "load_model",
    "save_model",
]
