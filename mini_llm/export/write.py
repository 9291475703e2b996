"""A model directory as one GGUF file."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType
from torch import nn

from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import atomic_path
from mini_llm.export.architectures import (
    ALWAYS_F32,
    ARCHITECTURES,
    metadata,
    refuse_other_graphs,
    refuse_other_models,
    tensors,
)
from mini_llm.export.vocabulary import Vocabulary, read_vocabulary
from mini_llm.model import HEADS, load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.model.huggingface.layouts import LAYOUTS, Layout

FILE_TYPES = {
    "f32": (Type.F32, LlamaFileType.ALL_F32),
    "f16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
LARGEST_F16 = 65504.0


@dataclass
class Source:
    """A model directory, read and found fit for llama.cpp."""

    directory: Path
    name: str
    layout: Layout
    model: nn.Module
    vocabulary: Vocabulary


@dataclass
class Written:
    """What export_gguf did."""

    file: Path
    source: Path
    size: int  # bytes
    types: Counter = field(default_factory=Counter)  # type -> tensors
    fallen_back: list[str] = field(default_factory=list)
    vocabulary: str = ""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.types.items())
        lines = [
            f"{self.file}: {self.size / 1e6:.1f} MB; tensors: {counts}; vocabulary: {self.vocabulary}",
            *self.notes,
        ]
        if self.fallen_back:
            shown = ", ".join(self.fallen_back[:3]) + (", ..." if len(self.fallen_back) > 3 else "")
            lines.append(f"F16 instead of Q8_0, as rows are not a multiple of 32: {len(self.fallen_back)} ({shown})")
        return "\n".join([*lines, f"Prove it: python -m mini_llm export check {self.source} {self.file}"])


def export_gguf(path: Path, out: Path | None = None, tensor_type: str = "f16") -> Written:
    """Write the model at `path` (model or run directory) to `out`, or into `path`. See FILE_TYPES for the types.

    Norms, biases and position tables stay F32; a matrix whose rows are not a multiple of 32 becomes F16 for Q8_0.
    The file is the old one or the whole new one, also after a kill. Raises CheckpointError, ModelDirectoryError,
    ConfigError when `out` cannot be written.
    """
    source = read_source(path)
    out = out or path / f"{source.name}-{tensor_type}.gguf"
    wanted, file_type = FILE_TYPES[tensor_type]
    try:
        with atomic_path(out) as temporary:
            # A path that cannot be written shows before the work.
            temporary.touch()
            writer = GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[source.layout.model_type]])
            for key, value in header(source, file_type).items():
                add_value(writer, key, value)
            source.vocabulary.write(writer)
            fallen_back, types = [], Counter()
            for name, tensor in tensors(source.layout, source.model.config, source.model.state_dict()):
                array = tensor.contiguous().numpy()
                kind = type_of(name, array, wanted)
                if kind is Type.F16 and wanted is Type.Q8_0:
                    fallen_back.append(name)
                types[kind.name] += 1
                writer.add_tensor(name, quantize(name, array, kind), raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    except OSError as error:
        raise ConfigError(f"{out}: cannot write there ({error.strerror or error}); choose another --out") from None
    vocabulary = f"{source.vocabulary.model}, {len(source.vocabulary.tokens):,} tokens"
    notes = []
    if source.model.config.logit_scale != 1:
        notes.append("llama.cpp has no scale of logits: it is in the weights of the last norm")
    return Written(out, path, out.stat().st_size, types, fallen_back, vocabulary, notes)


def read_source(path: Path) -> Source:
    """Read the model at `path` and refuse what llama.cpp cannot hold. Raises CheckpointError, ModelDirectoryError."""
    directory = find_model(path)
    if directory is None:
        problem = "no such directory" if not path.exists() else "no config.json here or in model/"
        raise CheckpointError(f"{path}: {problem}, so this is not a model or run directory. Trained ones lie in runs/")
    theirs = read_config(directory)
    layout = LAYOUTS[theirs["model_type"]]
    head = layout.head_of(theirs.get("architectures") or [])
    refuse_other_models(str(path), layout, head)
    model = load_model(directory)
    refuse_other_graphs(str(path), layout.model_type, model.config)
    head = next(name for name, cls in HEADS.items() if isinstance(model, cls))
    vocabulary = read_vocabulary(directory, model.config.vocab_size, head)
    place = directory.resolve()
    name = place.parent.name if place.name == "model" else place.name
    return Source(directory, name, layout, model, vocabulary)


def header(source: Source, file_type: LlamaFileType) -> dict[str, Any]:
    """Key -> value of everything in the file that is neither vocabulary nor tensor."""
    general = {
        gguf.Keys.General.TYPE: gguf.GGUFType.MODEL,
        gguf.Keys.General.NAME: source.name,
        gguf.Keys.General.FILE_TYPE: int(file_type),
        gguf.Keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
    }
    return general | metadata(source.layout.model_type, source.model.config)


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
    add(key, value)


def type_of(name: str, array: np.ndarray, wanted: Type) -> Type:
    """The type of one tensor in a file of type `wanted`."""
    if array.ndim <= 1 or name.endswith(ALWAYS_F32):
        return Type.F32
    if wanted is Type.Q8_0 and array.shape[-1] % gguf.GGML_QUANT_SIZES[Type.Q8_0][0]:
        return Type.F16
    return wanted


def quantize(name: str, array: np.ndarray, kind: Type) -> np.ndarray:
    """`array` (fp32) in the bytes of `kind`. Raises CheckpointError when a weight has no value there."""
    largest = float(np.abs(array).max(initial=0))
    if not np.isfinite(largest):
        raise CheckpointError(f"{name}: holds NaN or infinity, so this model is broken. Take an earlier checkpoint")
    # A block's scale of Q8_0 is an F16 too.
    limit = {Type.F16: LARGEST_F16, Type.Q8_0: LARGEST_F16 * 127}.get(kind, np.inf)
    if largest > limit:
        raise CheckpointError(f"{name}: holds {largest:.3g}, too large for {kind.name}; use --type bf16 or f32")
    return gguf.quants.quantize(array, kind)
