"""Tiny models with random weights, and random tokens for them."""

import torch

from mini_llm.model import CausalLM, ModelConfig

VOCABULARY, CONTEXT = 64, 16


def decoder(**changes) -> ModelConfig:
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "causal": True,
        "pad_token_id": 3,
    }
    return ModelConfig(**{**fields, **changes})


def encoder(**changes) -> ModelConfig:
    fields = {
        "causal": False,
        "num_key_value_heads": 4,
        "norm": "layernorm",
        "embedding_norm": True,
        "first_attention_norm": False,
        "qk_norm": False,
        "decoder_bias": True,
        "classifier_pooling": "mean",
    }
    return decoder(**{**fields, **changes})


def randomized(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every weight a value of order one: a fresh model has zero projections, which would hide most mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else 1 + 0.1 * noise)
    return model.eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(7, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def tiny_config(**changes) -> ModelConfig:
    """A decoder with a context of 16 tokens, to be outgrown by generated text."""
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    defaults = {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "causal": True}
    return ModelConfig(**{**sizes, **ends, **defaults, **changes})


def tiny_model(**changes) -> CausalLM:
    """Its residual projections start at zero, so noise is added to every weight: without it no token sees another."""
    torch.manual_seed(0)
    model = CausalLM(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model
