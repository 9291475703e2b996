"""Which layers of a model take the kernels of cpp/: those that they compute, in training on a CPU."""

from torch import nn
from torch.nn import functional as F

from engine.attention_kernel import MOST_CHANNELS, AttentionKernel
from engine.kernels import LANES, load_kernels
from engine.pointwise_kernels import Gate, Norm
from model.attention import Attention
from model.layers import MLP
from model.norms import RMSNorm


def use_kernels(model: nn.Module, compiled: bool = False) -> None:
    """Have them take it, where there is a library; the others go by torch's operators. `compiled`: blocks are, by
    torch.compile, which fuses what is done to each number by itself."""
    if load_kernels() is None:
        return
    for module in model.modules():
        if isinstance(module, Attention) and _computes(module):
            module.kernel = AttentionKernel()
        elif isinstance(module, MLP) and module.act is F.silu and not compiled:
            module.gated = Gate.apply
        elif isinstance(module, RMSNorm) and module.weight.size(0) % LANES == 0:
            module.kernel = Norm.apply


def _computes(attention: Attention) -> bool:
    norms = [attention.q_norm, attention.k_norm]
    plain = all(isinstance(norm, RMSNorm | nn.Identity) for norm in norms)
    return plain and attention.head_dim % LANES == 0 and attention.head_dim <= MOST_CHANNELS
