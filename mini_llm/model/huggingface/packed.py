"""Packed weights: packed.safetensors in place of model.safetensors, for files of a half to an eighth of the size.

The file holds the tensors of model.safetensors under the same names, but a matrix NAME (O, I) may be stored as

    NAME.int8 (int8, (O, I)) and NAME.scale (fp16, (O, I / group)): weight = value * scale of its group
    NAME.int4 (uint8, (O, I / 2)) and NAME.scale: two values + 8 a byte, the first one in the low half
    NAME.bits (uint8, (O, ceil(I / 8))) and NAME.kept (fp16): bit j % 8 of byte j // 8 in a row says whether weight j
        of that row is in NAME.kept, which lists the weights that are not zero, row by row; NAME.columns (int64) is I

Consecutive weights of a row share a scale (mini_llm/model/quantization.py), or all of a row whose length no group size
divides. load_model computes with the weights in fp32. The metadata of the file name the packing. To convert a directory
for transformers: save_model(load_model(PACKED), NEW).
"""

from typing import Literal

import torch
from torch import Tensor

from mini_llm.model.quantization import dequantize, group_size, quantize

PACKED = "packed.safetensors"
Packing = Literal["int8", "int4", "sparse"]
PARTS = (".int8", ".int4", ".scale", ".bits", ".kept", ".columns")
# The size of a group of 4-bit values: their scale costs a quarter to a half bit a weight.
INT4_GROUP = 32
_HALF = 65504.0  # largest fp16 number


def pack(tensors: dict[str, Tensor], packing: Packing) -> dict[str, Tensor]:
    """The content of packed.safetensors for the content of model.safetensors.

    Vectors stay as they are, and in int4 matrices with an odd number of columns.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or (packing == "int4" and tensor.size(1) % 2):
            packed[name] = tensor
            continue
        group = group_size(tensor.size(1)) or tensor.size(1)
        if packing == "sparse":
            packed |= {f"{name}{part}": value for part, value in _to_sparse(tensor).items()}
        elif packing == "int8":
            packed[f"{name}.int8"], packed[f"{name}.scale"] = _round(tensor, group, 8)
        else:
            group = INT4_GROUP if group % INT4_GROUP == 0 else group
            values, packed[f"{name}.scale"] = _round(tensor, group, 4)
            low, high = (values + 8).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
            packed[f"{name}.int4"] = low | high << 4
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack`, up to its rounding. Raises ValueError for a part without the others, or shapes that do not match."""
    tensors = {name: tensor for name, tensor in packed.items() if not name.endswith(PARTS)}
    try:
        for name, values in packed.items():
            base, _, part = name.rpartition(".")
            if part == "int8":
                tensors[base] = _scaled(values, packed[f"{base}.scale"])
            elif part == "int4":
                halves = torch.stack((values & 15, values >> 4), -1).flatten(-2)
                tensors[base] = _scaled(halves.to(torch.int8) - 8, packed[f"{base}.scale"])
            elif part == "bits":
                columns = int(packed[f"{base}.columns"])
                tensors[base] = _from_sparse(values, packed[f"{base}.kept"], columns)
    except KeyError as error:
        raise ValueError(f"packed weights without {error}") from None
    return tensors


def _scaled(values: Tensor, scale: Tensor) -> Tensor:
    if values.dim() != 2 or scale.dim() != 2 or len(scale) != len(values) or values.size(1) % scale.size(1):
        raise ValueError(f"scales {tuple(scale.shape)} do not fit packed weights {tuple(values.shape)}")
    return dequantize(values, scale)


def to_half(tensor: Tensor) -> Tensor:
    """fp16 values; those beyond its range become its largest number instead of infinite."""
    return tensor.clamp(-_HALF, _HALF).half()


def _round(weight: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """int8 values and fp16 scales; the values are rounded with the scale as it is stored."""
    _, scale = quantize(weight, group, bits)
    scale = to_half(scale)
    most = 2 ** (bits - 1) - 1
    grouped = weight.float().unflatten(-1, (-1, group)) / scale[..., None].float()
    # A scale that underflowed belongs to weights that are zero in fp16.
    values = grouped.nan_to_num(0, 0, 0).round().clamp(-most, most).to(torch.int8)
    return values.flatten(-2), scale


def _to_sparse(weight: Tensor) -> dict[str, Tensor]:
    kept = to_half(weight)
    mask = kept != 0
    padded = torch.nn.functional.pad(mask, (0, -mask.size(1) % 8)).to(torch.uint8).unflatten(-1, (-1, 8))
    bits = (padded << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return {".bits": bits, ".kept": kept[mask], ".columns": torch.tensor(weight.size(1))}


def _from_sparse(bits: Tensor, kept: Tensor, columns: int) -> Tensor:
    mask = (bits[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    mask = mask.flatten(-2)[:, :columns].bool()
    if int(mask.sum()) != len(kept):
        raise ValueError(f"{int(mask.sum())} bits are set for {len(kept)} packed weights")
    weight = torch.zeros(mask.shape)
    weight[mask] = kept.float()
    return weight
