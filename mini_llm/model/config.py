"""ModelConfig: every choice in the architecture, under Hugging Face's name where one exists."""

import math
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

LayerType = Literal["full_attention", "sliding_attention"]
Activation = Literal["relu", "gelu", "gelu_new", "silu", "tanh"]
# Default of the fields that ModelConfig computes: None for the constructor, but their readers never see None.
DERIVED: Any = None


@dataclass
class ModelConfig:
    """The architecture of one model. Encoder, decoder and encoder-decoder differ in these values alone.

    Fields left at None are derived: `num_key_value_heads` = `num_attention_heads`; `head_dim` = `hidden_size /
    num_attention_heads`; `intermediate_size` = 4 x `hidden_size`, or if gated 8/3 x `hidden_size`, rounded up to a
    multiple of 64, which gives the same number of weights (Shazeer 2020); `layer_types`: full attention in all layers;
    `num_decoder_layers` = `num_hidden_layers`; `classifier_head`: "linear" for decoders, "transform" for encoders.

    Raises ValueError that names the key if a value has the wrong type or is out of range, if sizes do not divide, or if
    choices contradict each other.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    causal: bool
    num_key_value_heads: int = DERIVED
    head_dim: int = DERIVED
    intermediate_size: int = DERIVED

    # Encoder-decoder: all other fields describe the encoder, and the decoder too, which is causal.
    is_encoder_decoder: bool = False
    num_decoder_layers: int | None = None
    cross_attention: bool = False
    decoder_start_token_id: int | None = None

    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    norm_place: Literal["pre", "post"] = "pre"
    embedding_norm: bool = False
    first_attention_norm: bool = True
    final_norm: bool = True
    qk_norm: bool = True
    # Multiplies the scores; None: 1 / sqrt(head_dim).
    attention_scale: float | None = None
    gated_mlp: bool = True
    hidden_act: Activation = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False

    position: Literal["rotary", "learned", "sinusoidal", "relative"] = "rotary"
    rope_theta: float = 10_000.0
    # {"rope_type": "linear" | "llama3", "factor": ..., ...} for a longer context than that of pretraining.
    rope_scaling: dict[str, Any] | None = None
    local_rope_theta: float | None = None
    relative_buckets: int = 32
    relative_max_distance: int = 128
    layer_types: list[LayerType] = DERIVED
    # Visible keys. Causal: the token itself included. Bidirectional: on each side.
    sliding_window: int | None = None
    embedding_scale: float = 1.0
    type_vocab_size: int = 0

    tie_word_embeddings: bool = True
    # Multiplies the hidden states before the vocabulary head.
    logit_scale: float = 1.0
    head_act: Activation = "gelu"
    head_bias: bool = False
    decoder_bias: bool = False
    next_sentence: bool = False
    # linear: without bias. transform: linear, activation, norm, linear. pooler: linear, tanh, linear.
    classifier_head: Literal["linear", "transform", "pooler"] = DERIVED
    classifier_pooling: Literal["last", "cls", "mean", "eos"] = "last"
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    id2label: dict[int, str] = field(default_factory=dict)

    init: Literal["identity", "normal", "scaled", "xavier", "fan_in"] = "identity"
    initializer_range: float = 0.02
    dropout: float = 0.0

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __post_init__(self) -> None:
        for key in KINDS:
            check_value(key, getattr(self, key))
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size ({self.hidden_size}) is not a multiple of "
                    f"num_attention_heads ({self.num_attention_heads}): change one of them or set head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_dim % 2 and self.position == "rotary":
            raise ValueError(f"head_dim ({self.head_dim}) must be even for rotary positions")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.intermediate_size is None:
            gated = -(-self.hidden_size * 8 // 3 // 64) * 64
            self.intermediate_size = gated if self.gated_mlp else 4 * self.hidden_size
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        unknown = [kind for kind in self.layer_types if kind not in get_args(LayerType)]
        if unknown:
            raise ValueError(f"layer_types has {unknown[0]!r}; use {' or '.join(get_args(LayerType))}")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for num_hidden_layers = {self.num_hidden_layers}"
            )
        if "sliding_attention" in self.layer_types and not self.sliding_window:
            raise ValueError("layer_types contains sliding_attention, but sliding_window is not set")
        if self.is_encoder_decoder and self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_hidden_layers
        if self.classifier_head is None:
            self.classifier_head = "linear" if self.causal else "transform"
        if self.position == "relative" and not 2 <= self.relative_buckets // 2 < self.relative_max_distance:
            raise ValueError(
                f"relative_buckets ({self.relative_buckets}) must be at least 4, and half of them fewer than "
                f"relative_max_distance ({self.relative_max_distance})"
            )
        if self.norm_place == "post" and not self.first_attention_norm:
            raise ValueError("first_attention_norm = False is possible only with norm_place = pre")

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder: `num_decoder_layers` of an encoder-decoder, else `num_hidden_layers`."""
        return self.num_decoder_layers if self.num_decoder_layers is not None else self.num_hidden_layers

    @property
    def start_token(self) -> int:
        """`decoder_start_token_id` of an encoder-decoder. Raises ValueError if it is not set."""
        if self.decoder_start_token_id is None:
            raise ValueError("decoder_start_token_id is not set, but an encoder-decoder needs it")
        return self.decoder_start_token_id

    def encoder(self) -> "ModelConfig":
        """The configuration of the encoder of an encoder-decoder."""
        return replace(self, is_encoder_decoder=False, causal=False)

    def decoder(self) -> "ModelConfig":
        """The configuration of the decoder of an encoder-decoder: causal, with cross-attention."""
        return replace(
            self,
            is_encoder_decoder=False,
            causal=True,
            cross_attention=True,
            num_hidden_layers=self.decoder_layers,
            layer_types=["full_attention"] * self.decoder_layers,
        )


KINDS = get_type_hints(ModelConfig)
MAY_BE_NONE = {entry.name for entry in fields(ModelConfig) if entry.default is None}


def check_value(field_name: str, value: Any, key: str | None = None) -> None:
    """Raise ValueError that names `key` (default: the field) if `value` has the wrong type or is out of range.

    A config.json may contain anything, and the layer count is used before any weight is checked.
    """
    if value is None and field_name in MAY_BE_NONE:
        return
    kind = KINDS[field_name]
    kind = get_args(kind)[0] if NoneType in get_args(kind) else kind
    if kind is bool:
        valid, wanted = type(value) is bool, "true or false"
    elif kind is int:
        # Old configurations write -1 for a missing token.
        least = -1 if field_name.endswith("_token_id") else int(field_name != "type_vocab_size")
        most = 10_000 if "layers" in field_name else 2**31 - 1
        valid, wanted = type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"
    elif kind is float:
        valid, wanted = type(value) in (int, float) and 0 <= value < math.inf, "a finite number of at least 0"
    elif get_origin(kind) is Literal:
        valid, wanted = value in get_args(kind), f"one of {', '.join(get_args(kind))}"
    else:
        valid, wanted = isinstance(value, get_origin(kind)), f"a {get_origin(kind).__name__}"
    if not valid:
        raise ValueError(f"{key or field_name} must be {wanted}, found {value!r}")
