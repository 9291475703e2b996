"""What the models share: their base class, the layers before an output layer, and logits that are read in chunks."""

from collections.abc import Callable

from torch import Tensor, nn

from mini_llm.model.activations import ACTIVATIONS
from mini_llm.model.config import ModelConfig
from mini_llm.model.norms import make_norm
from mini_llm.model.operations import PYTORCH, Operations

# A function of (predict, hidden) that a caller substitutes for predict(hidden), to compute logits in chunks and reduce
# each before the next.
Read = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def apply_read(read: Read | None, predict: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    return predict(hidden) if read is None else read(predict, hidden)


class Model(nn.Module):
    """What all models share: `ops`, the operations they are built from (mini_llm/model/operations.py).

    load_model sets the names of parameters that it initialized and of tensors that it did not use.
    """

    ops: Operations = PYTORCH
    config: ModelConfig
    newly_initialized: list[str]
    left_behind: list[str]


class PredictionHead(nn.Module):
    """Linear layer, activation, norm: the transform before an encoder's vocabulary head (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.head_act]
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.head_bias)
        self.norm = make_norm(config, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))  # ... C


class Pooler(nn.Module):
    """Linear layer and tanh on one position of each row (Devlin et al. 2018)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x).tanh()  # B C
