"""ModelConfig: every choice in the architecture, under Hugging Face's names."""

from dataclasses import dataclass, field
from typing import Literal

LayerType = Literal["full_attention", "sliding_attention"]


@dataclass
class ModelConfig:
    """The architecture of one model; encoder and decoder differ by data alone.

    Derived when left at None: `num_key_value_heads` (= `num_attention_heads`), `head_dim`
    (= `hidden_size / num_attention_heads`), `intermediate_size` (8/3 of `hidden_size`, up to a multiple of 64:
    a gated MLP with as many weights as an ungated one of 4x, Shazeer 2020), `layer_types` (all full attention).

    Raises ValueError naming the key when sizes do not divide.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    causal: bool
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None

    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    embedding_norm: bool = False
    first_attention_norm: bool = True
    qk_norm: bool = True
    hidden_act: Literal["silu", "gelu"] = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False

    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    layer_types: list[LayerType] | None = None
    # Causal: keys seen, the token itself included. Bidirectional: keys seen on each side.
    sliding_window: int | None = None

    tie_word_embeddings: bool = True
    head_act: Literal["silu", "gelu"] = "gelu"
    head_bias: bool = False
    decoder_bias: bool = False
    classifier_pooling: Literal["last", "cls", "mean"] = "last"
    id2label: dict[int, str] = field(default_factory=dict)

    initializer_range: float = 0.02
    dropout: float = 0.0

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __post_init__(self) -> None:
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, found {getattr(self, key)}")
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) is not a multiple of "
                    f"num_attention_heads ({self.num_attention_heads}); change one of them or set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.intermediate_size is None:
            self.intermediate_size = -(-self.hidden_size * 8 // 3 // 64) * 64
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for num_hidden_layers = {self.num_hidden_layers}"
            )
        if "sliding_attention" in self.layer_types and not self.sliding_window:
            raise ValueError("layer_types asks for sliding_attention, but sliding_window is not set")

    @property
    def num_labels(self) -> int:
        return len(self.id2label)
