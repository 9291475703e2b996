"""The Transformer: configuration, layers, trunk, heads, and Hugging Face directories in and out."""

from model.cache import KVCache
from model.config import ModelConfig
from model.heads import HEADS, CausalLM, MaskedLM, Seq2SeqLM, SequenceClassifier
from model.pretrained import ModelDirectoryError, load_model, save_model

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
