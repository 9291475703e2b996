"""Linear layers that take their operation from `ops`. They store what nn.Linear stores, under the same names."""

from torch import Tensor, nn

from mini_llm.model.activations import Activation
from mini_llm.model.operations import PYTORCH, Operations


class Linear(nn.Linear):
    """x W^T + b."""

    ops: Operations = PYTORCH

    def forward(self, input: Tensor) -> Tensor:
        """input (..., in_features) -> (..., out_features)."""
        return self.ops.linear(input, self.weight, self.bias)


class GatedLinear(nn.Linear):
    """(act(gate) * up) W^T + b: one operation, because a fused one need not keep the product for the backward pass."""

    ops: Operations = PYTORCH

    def __init__(self, in_features: int, out_features: int, act: Activation, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.act = act

    # Two inputs where nn.Linear has one.
    def forward(self, gate: Tensor, up: Tensor) -> Tensor:  # ty: ignore[incompatible-method-override]
        """gate and up (..., in_features) -> (..., out_features)."""
        return self.ops.gated_linear(gate, up, self.act, self.weight, self.bias)
