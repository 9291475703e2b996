"""Write a model directory as one GGUF file."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType

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
from mini_llm.model import HEADS, CausalLM, Seq2SeqLM, load_model
from mini_llm.model.huggingface.directory import read_config
from mini_llm.model.huggingface.layouts import LAYOUTS, Layout
from mini_llm.stages import local_commands

FILE_TYPES = {
    "f32": (Type.F32, LlamaFileType.ALL_F32),
    "f16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
LARGEST_F16 = 65504.0


@dataclass
class Source:
    """A model directory that was read and that llama.cpp supports."""

    directory: Path
    name: str
    layout: Layout
    model: CausalLM | Seq2SeqLM
    vocabulary: Vocabulary


@dataclass
class Written:
    """The result of export_gguf."""

    file: Path
    source: Path
    size: int  # bytes
    types: Counter = field(default_factory=Counter)  # type -> number of tensors
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
            lines.append(
                f"F16 instead of Q8_0, because rows are not a multiple of 32: {len(self.fallen_back)} ({shown})"
            )
        proof = local_commands(f"python -m mini_llm export check {self.source} {self.file}")
        return "\n".join([*lines, f"Check it: {proof}"])


def export_gguf(path: Path, out: Path | None = None, tensor_type: str = "f16") -> Written:
    """Write the model at `path` (model or run directory) to `out`, by default a file in `path`. FILE_TYPES lists types.

    Norms, biases and position tables stay F32. With Q8_0, a matrix whose rows are not a multiple of 32 becomes F16.
    Writing is atomic: a kill leaves the old file. Raises CheckpointError, ModelDirectoryError, and ConfigError if `out`
    cannot be written.
    """
    source = read_source(path)
    out = out or path / f"{source.name}-{tensor_type}.gguf"
    wanted, file_type = FILE_TYPES[tensor_type]
    try:
        with atomic_path(out) as temporary:
            # Fail on an unwritable path before doing the work.
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
        notes.append("llama.cpp has no logit scale, so it was folded into the weights of the final norm")
    return Written(out, path, out.stat().st_size, types, fallen_back, vocabulary, notes)


def read_source(path: Path) -> Source:
    """Read the model at `path`. Raises CheckpointError if llama.cpp does not support it, and ModelDirectoryError."""
    directory = find_model(path)
    if directory is None:
        problem = "no such directory" if not path.exists() else "no config.json here or in model/"
        raise CheckpointError(
            f"{path}: {problem}, so this is not a model or run directory. Trained models are in runs/"
        )
    theirs = read_config(directory)
    layout = LAYOUTS[theirs["model_type"]]
    head = layout.head_of(theirs.get("architectures") or [])
    refuse_other_models(str(path), layout, head)
    model = load_model(directory)
    assert isinstance(model, CausalLM | Seq2SeqLM), "refuse_other_models lets no other head pass"
    refuse_other_graphs(str(path), layout.model_type, model.config)
    head = next(name for name, cls in HEADS.items() if isinstance(model, cls))
    vocabulary = read_vocabulary(directory, model.config.vocab_size, head)
    place = directory.resolve()
    name = place.parent.name if place.name == "model" else place.name
    return Source(directory, name, layout, model, vocabulary)


def header(source: Source, file_type: LlamaFileType) -> dict[str, Any]:
    """Return all metadata of the file as key -> value, except the vocabulary."""
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
    """Return the type of one tensor in a file of type `wanted`."""
    if array.ndim <= 1 or name.endswith(ALWAYS_F32):
        return Type.F32
    if wanted is Type.Q8_0 and array.shape[-1] % gguf.GGML_QUANT_SIZES[Type.Q8_0][0]:
        return Type.F16
    return wanted


def quantize(name: str, array: np.ndarray, kind: Type) -> np.ndarray:
    """Quantize `array` (fp32) to bytes of type `kind`. Raises CheckpointError if a value is out of range or NaN."""
    largest = float(np.abs(array).max(initial=0))
    if not np.isfinite(largest):
        raise CheckpointError(f"{name}: contains NaN or infinity, so this model is broken. Use an earlier checkpoint")
    # Q8_0 stores the scale of a block as F16.
    limit = {Type.F16: LARGEST_F16, Type.Q8_0: LARGEST_F16 * 127}.get(kind, np.inf)
    if largest > limit:
        raise CheckpointError(f"{name}: contains {largest:.3g}, too large for {kind.name}; use --type bf16 or f32")
    return gguf.quants.quantize(array, kind)
