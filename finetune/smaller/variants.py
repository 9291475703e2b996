"""Write smaller variants of a classifier: half precision, packed weights, pruned weights, pruned heads and neurons."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mini_llm.engine.run.files import atomic_directory, read_json, write_json
from mini_llm.model import save_model
from mini_llm.model.huggingface.directory import INDEX, WEIGHTS, read_config, read_tensors
from mini_llm.model.huggingface.packed import PACKED, Packing, pack, to_half
from mini_llm.model.huggingface.weights import save_tensors

from ..examples import Splits
from ..predict import Classifier
from ..recipe.ensemble import FOLDER as LINEAR
from .distil import measure_importance
from .pruning import keep_important, prune_magnitude
from .subnetwork import subnetwork

# Shares of the weights that become zero, and of the heads and neurons that are removed.
ZEROED, REMOVED = 0.5, 0.25

DESCRIPTIONS = {
    "fp16": "half precision; a plain Hugging Face directory",
    "int8": "8-bit integers with a scale per group of weights",
    "int4": "4-bit integers with a scale per group of weights",
    "sparse": f"{ZEROED:.0%} of the weights set to zero and left out, the others in half precision",
    "pruned": f"{REMOVED:.0%} of the heads and neurons removed; a plain Hugging Face directory",
    "pruned-int8": "the pruned one in 8-bit integers",
}


def write_variants(base: Classifier, splits: Splits, folder: Path) -> dict[str, Path]:
    """Write every variant of DESCRIPTIONS that `base` can have into `folder`; return their directories by name.

    The importance of heads and neurons is measured on validation texts. An encoder-decoder is not pruned.
    """
    source = base.directory
    written = {
        "fp16": write_half(source, folder / "fp16"),
        "int8": write_packed(source, folder / "int8", "int8"),
        "int4": write_packed(source, folder / "int4", "int4"),
        "sparse": write_packed(source, folder / "sparse", "sparse", lambda tensors: prune_magnitude(tensors, ZEROED)),
    }
    config = base.model.config
    if not config.is_encoder_decoder:
        kept = keep_important(config, measure_importance(base, splits.validation), REMOVED)
        with atomic_directory(folder / "pruned") as directory:
            copy_other_files(source, directory)
            save_model(subnetwork(base.model, kept), directory)
        written["pruned"] = folder / "pruned"
        written["pruned-int8"] = write_packed(folder / "pruned", folder / "pruned-int8", "int8")
    return written


def write_half(source: Path, target: Path) -> Path:
    """The model of `source` with fp16 weights."""
    with atomic_directory(target) as directory:
        copy_other_files(source, directory)
        tensors = read_tensors(source, read_config(source))
        halves = {name: to_half(tensor) for name, tensor in tensors.items()}
        save_tensors(halves, directory / WEIGHTS, {"format": "pt"})
        write_json(directory / "config.json", {**read_json(directory / "config.json"), "dtype": "float16"})
    return target


def write_packed(
    source: Path, target: Path, packing: Packing, prune: Callable[[dict[str, Tensor]], None] | None = None
) -> Path:
    """The model of `source` with packed.safetensors in place of its weights, which `prune` changes in place before."""
    with atomic_directory(target) as directory:
        copy_other_files(source, directory)
        tensors = read_tensors(source, read_config(source))
        if prune is not None:
            prune(tensors)
        save_tensors(pack(tensors, packing), directory / PACKED, {"format": "packed", "packing": packing})
    return target


def copy_other_files(source: Path, target: Path) -> None:
    """Copy configuration, tokenizer and calibration: everything but the weights and the linear models beside them."""
    shards = {str(name) for name in ((read_json(source / INDEX) or {}).get("weight_map") or {}).values()}
    left_out = {WEIGHTS, PACKED, INDEX, *shards, LINEAR}
    for path in source.iterdir():
        if path.name in left_out:
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def count_weights(directory: Path) -> int:
    """The weights of a directory that are not zero."""
    tensors = read_tensors(directory, read_config(directory)).values()
    return sum(int(torch.count_nonzero(tensor)) for tensor in tensors)


def size_in_bytes(directory: Path, with_linear: bool) -> int:
    """The bytes of all files of a directory, with or without the linear models beside the Transformer."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    if not with_linear:
        files = [path for path in files if path.relative_to(directory).parts[0] != LINEAR]
    return sum(path.stat().st_size for path in files)
