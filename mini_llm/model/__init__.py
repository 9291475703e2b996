"""The Transformer: configuration, layers, trunk, heads; reading and writing Hugging Face model directories."""

from mini_llm.model.cache import KVCache
from mini_llm.model.config import ModelConfig
from mini_llm.model.heads import (
    HEADS,
    CausalLM,
    MaskedLM,
    Model,
    QuestionAnswerer,
    Seq2SeqLM,
    SequenceClassifier,
    TokenClassifier,
)
from mini_llm.model.huggingface.directory import ModelDirectoryError, load_model, save_model

__all__ = [
    "HEADS",
    "CausalLM",
    "KVCache",
    "MaskedLM",
    "Model",
    "ModelConfig",
    "ModelDirectoryError",
    "QuestionAnswerer",
    "Seq2SeqLM",
    "SequenceClassifier",
    "TokenClassifier",
    "load_model",
    "save_model",
]
