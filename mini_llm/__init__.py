"""mini-llm: train a tokenizer, pretrain, fine-tune and use small language models."""

__version__ = "0.1.0"
