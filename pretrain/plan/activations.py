"""What autograd keeps of a forward pass for the backward pass, in bytes per token of a row.

Without the tables of positions, which all rows share. tests/pretrain/test_memory_plan.py holds this against what autograd saves.
"""

from dataclasses import dataclass

from mini_llm.engine.kernels.attention import in_one_operator
from mini_llm.engine.kernels.load import LANES
from mini_llm.model import ModelConfig

# Activations whose result, which the next product keeps anyway, is all that their gradient needs.
FROM_RESULT = ("relu", "tanh")


@dataclass(frozen=True)
class Widths:
    """Bytes of an element: of the residual stream, and of the operands of matrix products.

    fp32: 4, 4. Autocast: 4, 2. A module cast to half precision (DeepSpeed): 2, 2.
    `short`: keys up to which attention keeps its softmax (mini_llm/model/attention.py: SHORT). `fused`: positions up to which
    it is one operator, `kernels`: whether norms and the loss are (mini_llm/engine/kernels/install.py).
    """

    stream: int
    product: int
    short: int = 0
    fused: int = 0
    kernels: bool = False
    on_gpu: bool = False

    @property
    def autocast(self) -> bool:
        return self.stream != self.product

    def inputs(self, size: int, products: int) -> int:
        """The input of `products` matrix products that are not fed by one norm: autocast copies it for each."""
        return self.product * size * (products if self.autocast else 1)


def norm_bytes(config: ModelConfig, widths: Widths, size: int, width: int | None = None) -> int:
    """One norm over `size` channels: its input and statistics. RMSNorm as torch has it on a CPU also the normalised,
    both in fp32."""
    width = widths.stream if width is None else width
    if config.norm == "rmsnorm":
        fused = widths.on_gpu or (widths.kernels and size % LANES == 0)
        return (4 if width == 4 and fused else 8) * size + 4
    return width * size + 2 * widths.stream


def block_bytes(
    config: ModelConfig, widths: Widths, length: int, across: int = 0, masks: float = 0.0, first: bool = False
) -> float:
    """One block. `across`: tokens of the memory that cross-attention reads. `masks`: rows' share of an attention mask,
    1 where every row has its own, 1 / rows where they share one, 0 without. `first`: the block that may lack a norm."""
    size, inner = config.hidden_size, config.intermediate_size
    norm = norm_bytes(config, widths, size)
    # What a norm leaves for several products is cast once; the sum that post-norm feeds them, for each.
    post = config.norm_place == "post"
    total = (norm if config.first_attention_norm or not first else 0) + widths.inputs(size, 3 if post else 1)
    total += attention_bytes(config, widths, length, length, config.position == "relative", masks)
    parts = 2
    if config.cross_attention:
        # Without autocast all blocks keep the one memory, which the encoder's last norm leaves.
        memory = widths.inputs(size, 2) * across / length if widths.autocast else 0
        total += norm + widths.inputs(size, 1) + memory
        total += attention_bytes(config, widths, length, across, False, 0.0, across=True)
        parts = 3
    total += norm + widths.inputs(size, 2 if config.gated_mlp and post else 1)
    # A gate's activation is not kept (mini_llm/model/activations.py), nor, with kernels, what it lets through.
    kept = 2 - (config.hidden_act in FROM_RESULT)
    if config.gated_mlp:
        kept = 2 if widths.kernels and config.hidden_act == "silu" else 3
    total += widths.product * inner * kept
    return total + (widths.product * size * parts if config.dropout else 0)


def attention_bytes(
    config: ModelConfig, widths: Widths, length: int, keys: int, scored: bool, masks: float, across: bool = False
) -> float:
    """Queries, keys, values, result; `scored`: with a bias that is learned, the softmax too, all in fp32."""
    heads, size = config.num_attention_heads, config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim * keys / length
    total = 0.0
    if not across and not scored and length <= widths.fused and in_one_operator(config):
        # As the projections leave them; a mask as it comes, a byte a key.
        return widths.product * (2 * size + 2 * kv) + 4 * heads + keys * masks
    if config.qk_norm:
        per_head = norm_bytes(config, widths, config.head_dim, widths.product)
        total += heads * per_head + config.num_key_value_heads * keys / length * per_head
    if keys <= widths.short:
        # Grouped keys and values are repeated for every head.
        return total + widths.product * (2 * size + 2 * size * keys / length + heads * keys)
    if scored:
        return total + 4 * (size + 2 * size * keys / length + heads * keys) + widths.product * size
    # One number per head and query beside them: the logarithm of the softmax's denominator.
    total += widths.product * (2 * size + 2 * kv) + 4 * heads
    return total + widths.product * keys * masks


def edge_bytes(config: ModelConfig, widths: Widths) -> float:
    """Beside the blocks: token ids, embedding norm, final norm."""
    norms = int(config.embedding_norm) + int(config.final_norm)
    total = 8 + norms * norm_bytes(config, widths, config.hidden_size)
    return total + (widths.stream * config.hidden_size if config.dropout else 0)


def head_bytes(config: ModelConfig, widths: Widths) -> float:
    """Per position that reaches the vocabulary head: its input, and the transform of an encoder's."""
    size = config.hidden_size
    total = widths.product * size
    if not config.causal and not config.is_encoder_decoder:
        kept = 2 - (config.head_act in FROM_RESULT)
        total += kept * widths.product * size + norm_bytes(config, widths, size, widths.product)
    return total


def loss_bytes(config: ModelConfig, widths: Widths) -> float:
    """Per position of a piece (mini_llm/engine/loss.py): logits, their gradient (the kernel's in their place, bf16's in fp32
    too), what the head keeps."""
    return (widths.product if widths.kernels else 8) * config.vocab_size + head_bytes(config, widths)
