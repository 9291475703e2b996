"""The Transformer: configuration, layers, trunk, heads, and Hugging Face directories in and out."""

from model.config import ModelConfig
from model.heads import HEADS, CausalLM, MaskedLM, SequenceClassifier
from model.layers import KVCache
from model.pretrained import ModelDirectoryError, load_model, save_model

__all__ = [
    "HEADS",
    "CausalLM",
    "KVCache",
    "MaskedLM",
    "ModelConfig",
    "ModelDirectoryError",
    "SequenceClassifier",
    "load_model",
    "save_model",
]
