"""The C++ decoding step (cpp/decode.cpp): which models it supports, their weights in its layout, one call per token."""

import ctypes
import mmap
import time
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import fields
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mini_llm.engine.kernels.build import load_library
from mini_llm.engine.kernels.team_size import TeamSize
from mini_llm.model import CausalLM, KVCache, ModelConfig
from mini_llm.model.layers import DecoderLayer
from mini_llm.model.positions import rotary_table
from mini_llm.model.quantization import dequantize, group_size, quantize

SOURCE = Path(__file__).parent / "cpp" / "decode.cpp"
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_new": 2, "silu": 3}
# Values that the step supports. A field that is neither here nor in FREE must have its default.
SUPPORTED = {
    "causal": (True,),
    "position": ("rotary", "learned"),
    "hidden_act": tuple(ACTIVATIONS),
}
FREE = """
vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size
max_position_embeddings num_decoder_layers decoder_start_token_id norm norm_eps norm_bias qk_norm attention_scale
gated_mlp attention_bias mlp_bias rope_theta rope_scaling local_rope_theta relative_buckets relative_max_distance
layer_types sliding_window embedding_scale tie_word_embeddings logit_scale head_act head_bias decoder_bias
next_sentence classifier_head classifier_pooling id2label init initializer_range dropout
bos_token_id eos_token_id pad_token_id cls_token_id sep_token_id
"""
SIZES = "layers hidden heads kv_heads head_dim inner gated activation layer_norm cache_bf16 threads same_text"
HUGE_PAGE = 2**21
# Bytes: weights start at a cache line.
ALIGNMENT = 64
# Outputs that int8 weights are packed by.
BLOCK = 16

pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def structure(name: str, **members: type) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(members.items())})


# The structs of decode.cpp, field by field.
Matrix = structure("Matrix", data=pointer, scale=pointer, bias=pointer, rows=size, cols=size, group=size, kind=size)
Norm = structure("Norm", weight=pointer, bias=pointer)
Layer = structure(
    "Layer",
    **dict.fromkeys(("attention_norm", "mlp_norm", "query_norm", "key_norm"), Norm),
    **dict.fromkeys(("qkv", "out", "gate", "up", "down"), Matrix),
    cosine=pointer,
    sine=pointer,
    window=size,
)
Decoder = structure(
    "Decoder",
    layer=ctypes.POINTER(Layer),
    norm=Norm,
    head=Matrix,
    **dict.fromkeys(SIZES.split(), size),
    **dict.fromkeys(("eps", "attention_scale", "logit_scale"), number),
)
Row = structure("Row", keys=pointer, values=pointer, length=size, capacity=size)


def unsupported(config: ModelConfig) -> str | None:
    """The first field that the step does not support, as `name=value`; None if it supports the architecture."""
    for field in fields(ModelConfig):
        value = getattr(config, field.name)
        allowed = SUPPORTED.get(field.name, (value,) if field.name in FREE.split() else (field.default,))
        if value not in allowed:
            return f"{field.name}={value}"
    return None


@torch.no_grad()
def round_to_int8(model: CausalLM) -> None:
    """Round the weights of all linear layers to int8 values in place, so that the prompt is computed with them too."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and (group := group_size(module.in_features)):
            module.weight.copy_(dequantize(*quantize(module.weight, group)))


class HugePages:
    """A memory pool of 2 MB pages, if the system offers them: reading weights from it is a fifth faster."""

    def __init__(self, size: int) -> None:
        """`size` is in bytes. Unused pages take no memory."""
        size += HUGE_PAGE
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # By default Python makes a shared mapping, which has huge pages on few systems.
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        else:
            block = mmap.mmap(-1, size)
        room = torch.frombuffer(block, dtype=torch.uint8)
        self._free = room[-room.data_ptr() % HUGE_PAGE :]

    def place(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` in the pool."""
        taken = self._free[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._free = self._free[-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT :]
        return taken.copy_(tensor)


class CompiledStep:
    """Computes the next token of a causal model in one call, with its fp32 or bf16 weights or in int8.

    Moves the weights of linear layers to huge pages; the model itself uses them there, too.
    Raises OSError if the library cannot be compiled, ValueError for an architecture that it does not support.
    """

    def __init__(self, model: CausalLM, int8: bool = False) -> None:
        config, trunk = model.config, model.trunk
        problem = unsupported(config)
        if problem:
            raise ValueError(problem)
        library, reason = load_library(SOURCE)
        if library is None:
            raise OSError(reason)
        self._run = library.decode_step
        self._run.argtypes, self._run.restype = [pointer, pointer, size, pointer, pointer], None
        self.config, self.int8 = config, int8
        self._embed = trunk.embed.weight
        self._position = trunk.embed_position.weight if config.position == "learned" else None
        # Tensors that the structs point to.
        self._kept: list[Tensor] = []
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        # Packed weights with their scales take at most 5/4 bytes a weight, in up to BLOCK rows more.
        self._room = HugePages(sum(one.weight.nbytes + 2 * BLOCK * one.in_features + 2 * ALIGNMENT for one in linears))
        self._tables: dict[float, tuple[Tensor, Tensor]] = {}
        self._reach = 0
        # By the number of rows.
        self._teams: dict[int, TeamSize] = {}
        self._addresses: WeakKeyDictionary[KVCache, tuple[ctypes.Array, ctypes.Array]] = WeakKeyDictionary()
        blocks = [block for block in trunk.blocks if isinstance(block, DecoderLayer)]
        self._layers = (Layer * config.num_hidden_layers)(*map(self._layer, blocks))
        self._decoder = Decoder(
            layer=self._layers,
            norm=self._norm(trunk.norm),
            head=self._matrix(model.lm_head),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            inner=config.intermediate_size,
            gated=config.gated_mlp,
            activation=ACTIVATIONS[config.hidden_act],
            layer_norm=config.norm == "layernorm",
            cache_bf16=self._embed.dtype == torch.bfloat16,
            threads=1,
            same_text=False,
            eps=config.norm_eps,
            attention_scale=blocks[0].attn.scale,
            logit_scale=config.logit_scale,
        )

    def __call__(self, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """fp32 logits (R, V) after one more token in each of R texts. Each cache grows by one position."""
        return self._advance(tokens, caches)

    def follow(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """fp32 logits (R, V) after each of R tokens that follow one another in a text, with the bits of R calls.

        The cache grows by R positions.
        """
        if len(tokens) == 1:
            return self(tokens, [cache])
        rows = [copy(cache) for _ in tokens]
        for place, row in enumerate(rows):
            row.length += place
        logits = self._advance(tokens, rows, same_text=True)
        cache.length += len(tokens)
        return logits

    def _advance(self, tokens: Sequence[int], caches: Sequence[KVCache], same_text: bool = False) -> Tensor:
        longest = max(cache.length for cache in caches) + 1
        if longest > self._reach:
            self._rotate_up_to(longest)
        ids = torch.tensor(tokens)
        x = self._embed[ids].float() * self.config.embedding_scale
        if self._position is not None:
            x = x + self._position[torch.tensor([cache.length for cache in caches])].float()
        logits = torch.empty(len(tokens), self.config.vocab_size)
        rows = (Row * len(caches))(*map(self._row, caches))

        def run(threads: int) -> None:
            self._decoder.threads, self._decoder.same_text = threads, same_text
            self._run(ctypes.byref(self._decoder), rows, len(tokens), x.data_ptr(), logits.data_ptr())

        self._team(len(tokens)).run(run, time.perf_counter)
        for cache in caches:
            cache.length += 1
        return logits

    def _team(self, rows: int) -> TeamSize:
        """Times with other numbers of rows say nothing, but the choice that was the best there is the first to try."""
        if rows not in self._teams:
            newest = next(reversed(self._teams.values()), None)
            self._teams[rows] = TeamSize(torch.get_num_threads(), newest.chosen if newest else None)
        return self._teams[rows]

    def _row(self, cache: KVCache) -> ctypes.Structure:
        if cache.length >= cache.max_length:
            raise ValueError(f"the cache is full: all of its {cache.max_length} positions are taken")
        keys, values = self._addresses.get(cache) or self._addresses.setdefault(cache, _addresses(cache))
        return Row(ctypes.addressof(keys), ctypes.addressof(values), cache.length, cache.max_length)

    def _rotate_up_to(self, length: int) -> None:
        """Compute tables up to the next power of two only: the context may be far longer than a text."""
        self._reach = 1 << (length - 1).bit_length()
        if self.config.position != "rotary":
            return
        config, tables = self.config, {}
        for layer, kind in zip(self._layers, config.layer_types, strict=True):
            local = kind == "sliding_attention" and config.local_rope_theta
            theta = config.local_rope_theta if local else config.rope_theta
            if theta not in tables:
                tables[theta] = rotary_table(torch.arange(self._reach), config.head_dim, theta, config.rope_scaling)
            layer.cosine, layer.sine = (table.data_ptr() for table in tables[theta])
        self._tables = tables

    def _layer(self, block: DecoderLayer) -> ctypes.Structure:
        attention, mlp = block.attn, block.mlp
        kind = self.config.layer_types[attention.layer]
        return Layer(
            attention_norm=self._norm(block.attn_norm),
            mlp_norm=self._norm(block.mlp_norm),
            query_norm=self._norm(attention.q_norm),
            key_norm=self._norm(attention.k_norm),
            qkv=self._matrix(attention.q_proj, attention.k_proj, attention.v_proj),
            out=self._matrix(attention.o_proj),
            gate=Matrix() if mlp.gate_proj is None else self._matrix(mlp.gate_proj),
            up=self._matrix(mlp.up_proj),
            down=self._matrix(mlp.down_proj),
            window=self.config.sliding_window if kind == "sliding_attention" else 0,
        )

    def _norm(self, norm: nn.Module) -> ctypes.Structure:
        weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
        return Norm(*(None if t is None else self._keep(t.detach().float()) for t in (weight, bias)))

    def _matrix(self, *linears: nn.Linear) -> ctypes.Structure:
        """The stacked weights of layers with the same input, for a single product."""
        weight = _stack([linear.weight for linear in linears])
        bias = None if linears[0].bias is None else _stack([linear.bias for linear in linears]).float()
        rows, columns = weight.shape
        group, scale = group_size(columns) if self.int8 else None, None
        if group:
            weight, scale = pack(*quantize(weight, group))
            scale = self._room.place(scale)
        weight = self._room.place(weight)
        if not group:
            # Step and prompt share one copy.
            for linear, part in zip(linears, weight.split([one.out_features for one in linears]), strict=True):
                linear.weight.data = part
        addresses = [None if t is None else self._keep(t) for t in (weight, scale, bias)]
        return Matrix(*addresses, rows=rows, cols=columns, group=group or 0, kind=KINDS[weight.dtype])

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def pack(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Reorder int8 values (O, I) and scales (O, G) to (B, I / 2, BLOCK, 2) and (B, G, BLOCK), B = O / BLOCK.

    A vector then holds two weights of each output of a block, for the same two inputs. Zeros fill the last block.
    """
    padding = (0, 0, 0, -len(values) % BLOCK)
    values, scale = (nn.functional.pad(tensor, padding).unflatten(0, (-1, BLOCK)) for tensor in (values, scale))
    return values.unflatten(-1, (-1, 2)).transpose(1, 2).contiguous(), scale.transpose(1, 2).contiguous()


def _addresses(cache: KVCache) -> tuple[ctypes.Array, ctypes.Array]:
    """Addresses of the keys of each layer, and of the values."""
    keys, values = ([t.data_ptr() for t in kind] for kind in zip(*cache.layers, strict=True))
    return (pointer * len(keys))(*keys), (pointer * len(values))(*values)


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
