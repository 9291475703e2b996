"""Weight initialization of every model, by `config.init`."""

import math

import torch
from torch import nn

from mini_llm.model.config import ModelConfig


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig) -> None:
    """Initialize every parameter. Norm weights are 1, biases 0; embeddings and heads are normally distributed.

    | init     | output projections (o_proj, down_proj)        | other matrices               | embeddings, heads   |
    |----------|-----------------------------------------------|------------------------------|---------------------|
    | identity | zero: layers start as the identity            | 1/sqrt(fan in)               | `initializer_range` |
    |          | (Zhang et al. 2019)                           |                              |                     |
    | normal   | `initializer_range` (Devlin et al. 2018)      | `initializer_range`          | `initializer_range` |
    | scaled   | `initializer_range` / sqrt(2 layers)          | `initializer_range`          | `initializer_range` |
    |          | (Radford et al. 2019)                         |                              |                     |
    | xavier   | uniform (Glorot and Bengio 2010)              | uniform                      | 1/sqrt(C)           |
    |          |                                               |                              | (Vaswani et al.)    |
    | fan_in   | 1/sqrt(fan in) (Raffel et al. 2020)           | 1/sqrt(fan in); q_proj also  | 1; untied head      |
    |          |                                               | / sqrt(D): unscaled scores   | 1/sqrt(C)           |

    Values are standard deviations unless stated otherwise. With identity and normal, the first loss is close to ln V.
    """
    for name, parameter in model.named_parameters():
        *_, owner, leaf = name.split(".")
        if parameter.dim() < 2:
            parameter.fill_(1.0 if leaf == "weight" else 0.0)
        elif owner in ("o_proj", "down_proj"):
            _init_residual(parameter, config)
        elif owner.endswith("_proj") or owner == "dense":
            _init_matrix(parameter, config, owner)
        else:
            _init_table(parameter, config, owner)


def _init_residual(parameter: nn.Parameter, config: ModelConfig) -> None:
    if config.init == "identity":
        parameter.zero_()
    elif config.init == "scaled":
        parameter.normal_(std=config.initializer_range / math.sqrt(2 * config.num_hidden_layers))
    else:
        _init_matrix(parameter, config, "")


def _init_matrix(parameter: nn.Parameter, config: ModelConfig, owner: str) -> None:
    if config.init == "xavier":
        nn.init.xavier_uniform_(parameter)
    elif config.init in ("normal", "scaled"):
        parameter.normal_(std=config.initializer_range)
    else:
        std = parameter.size(1) ** -0.5
        # This architecture does not scale its scores by 1/sqrt(D); the initial queries do instead.
        unscaled = config.init == "fan_in" and owner == "q_proj"
        parameter.normal_(std=std * config.head_dim**-0.5 if unscaled else std)


def _init_table(parameter: nn.Parameter, config: ModelConfig, owner: str) -> None:
    if config.init == "xavier":
        parameter.normal_(std=config.hidden_size**-0.5)
    elif config.init == "fan_in":
        parameter.normal_(std=1.0 if owner == "embed" else config.hidden_size**-0.5)
    else:
        parameter.normal_(std=config.initializer_range)
