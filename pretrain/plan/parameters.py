"""How many parameters a model has, part by part, counted from its configuration: no model is made for it."""

from collections import Counter
from dataclasses import dataclass, field

from mini_llm.model import ModelConfig


@dataclass(frozen=True)
class Parameters:
    """Counts, each parameter once. `matrices`: elements by (rows, columns), shorter side first, of the matrices of the
    blocks, which Muon updates, and `pieces` of what it cuts them into; `table`: of the largest parameter."""

    embedding: int
    blocks: int
    head: int
    norms: int
    table: int
    matrices: Counter[tuple[int, int]] = field(default_factory=Counter)
    pieces: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.head + self.norms

    @property
    def hidden(self) -> int:
        return self.matrices.total()


def count_parameters(config: ModelConfig) -> Parameters:
    """Of the model that is pretrained with `config`: decoder, encoder or encoder-decoder with its vocabulary head."""
    trunks = [config.encoder(), config.decoder()] if config.is_encoder_decoder else [config]
    size, table = config.hidden_size, config.vocab_size * config.hidden_size
    matrices: Counter[tuple[int, int]] = Counter()
    pieces: Counter[tuple[int, int]] = Counter()
    embedding, blocks, norms = table, 0, 0
    for trunk in trunks:
        embedding += size * trunk.type_vocab_size
        embedding += size * trunk.max_position_embeddings if trunk.position == "learned" else 0
        embedding += trunk.relative_buckets * trunk.num_attention_heads if trunk.position == "relative" else 0
        norms += (int(trunk.embedding_norm) + int(trunk.final_norm)) * _norm(trunk, size)
        shapes = _matrices(trunk)
        projections = 4 * (2 if trunk.cross_attention else 1)
        for i, (rows, columns) in enumerate(shapes):
            elements = rows * columns * trunk.num_hidden_layers
            matrices[min(rows, columns), max(rows, columns)] += elements
            # mini_llm/engine/optim.py: head_pieces.
            piece = (trunk.head_dim, size) if i < projections else (rows, columns)
            pieces[min(piece), max(piece)] += elements
        weights = sum(rows * columns for rows, columns in shapes)
        blocks += trunk.num_hidden_layers * (weights + _vectors(trunk))
        blocks -= 0 if trunk.first_attention_norm else _norm(trunk, size)
    head = 0 if config.tie_word_embeddings else table
    head += config.vocab_size if config.decoder_bias else 0
    if not config.causal and not config.is_encoder_decoder:
        head += size * size + (size if config.head_bias else 0) + _norm(config, size)
        head += size * size + size + 2 * size + 2 if config.next_sentence else 0
    largest = max(table, *(rows * columns for trunk in trunks for rows, columns in _matrices(trunk)))
    return Parameters(embedding, blocks, head, norms, largest, matrices, pieces)


def _norm(config: ModelConfig, size: int) -> int:
    return size * (2 if config.norm == "layernorm" and config.norm_bias else 1)


def _matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """(output, input) sizes of the matrices of one block."""
    size, inner = config.hidden_size, config.intermediate_size
    width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    attention = [(width, size), (kv_width, size), (kv_width, size), (size, width)]
    mlp = [(inner, size)] * (2 if config.gated_mlp else 1) + [(size, inner)]
    return attention * (2 if config.cross_attention else 1) + mlp


def _vectors(config: ModelConfig) -> int:
    """Biases and norms of one block."""
    size, attentions = config.hidden_size, 2 if config.cross_attention else 1
    norms = (attentions + 1) * _norm(config, size)
    norms += attentions * 2 * _norm(config, config.head_dim) if config.qk_norm else 0
    shapes = _matrices(config)
    mlp = sum(rows for rows, _ in shapes[4 * attentions :]) if config.mlp_bias else 0
    return norms + mlp + (sum(rows for rows, _ in shapes[: 4 * attentions]) if config.attention_bias else 0)
