"""Which layers of a model take the kernels of cpp/: those that they compute, in training on a CPU."""

from functools import partial

from torch import nn
from torch.nn import functional as F

from mini_llm.engine.kernels.attention import AttentionKernel, in_one_operator
from mini_llm.engine.kernels.linear import SMALL, gated_linear, linear
from mini_llm.engine.kernels.load import LANES
from mini_llm.engine.kernels.pointwise import Norm
from mini_llm.model.layers import MLP
from mini_llm.model.norms import RMSNorm
from mini_llm.model.transformer import Transformer


def use_kernels(model: nn.Module, compiled: bool = False) -> None:
    """Have them take it, where the device has kernels; the others go by torch's operators. `compiled`: blocks are, by
    torch.compile, which fuses what is done to each number by itself."""
    for module in model.modules():
        head = getattr(module, "lm_head", None)
        if isinstance(head, nn.Linear) and head.weight.numel() >= SMALL:
            head.forward = partial(linear, head)
        if isinstance(module, Transformer):
            for block in module.blocks:
                if in_one_operator(module.config):
                    block.attn.kernel = AttentionKernel()
                for layer in block.modules():
                    if isinstance(layer, nn.Linear) and layer.weight.numel() >= SMALL:
                        layer.forward = partial(linear, layer)
        elif isinstance(module, MLP) and module.gate_proj and module.act is F.silu and not compiled:
            module.gate_in_down, module.down_proj.forward = True, partial(gated_linear, module.down_proj)
        elif isinstance(module, RMSNorm) and module.weight.size(0) % LANES == 0:
            module.kernel = Norm.apply
