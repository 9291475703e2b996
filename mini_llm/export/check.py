"""Check that a GGUF file holds the model of a directory."""

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, Keys, LlamaFileType, TokenType
from rich.console import Console
from rich.table import Table

from mini_llm.engine.errors import CheckpointError
from mini_llm.export import llama_cpp
from mini_llm.export.architectures import ARCHITECTURES, tensors
from mini_llm.export.check_text import Finding, check_ids, check_runtime
from mini_llm.export.encoders import make_encoder
from mini_llm.export.vocabulary import vocabulary_of
from mini_llm.export.write import FILE_TYPES, Source, header, read_source, type_of


def check_gguf(path: Path, file: Path) -> None:
    """Print a table of what was compared. Raises CheckpointError if `file` is unreadable or not the model at `path`."""
    source, reader = read_source(path), open_gguf(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    findings = [check_header(source, fields), check_tensors(source, reader, fields), check_vocabulary(source, fields)]
    findings.append(check_ids(source, "ids of a text", make_encoder(vocabulary_of(fields))))
    if llama_cpp.is_installed():
        findings += check_runtime(source, file, fields)
    else:
        findings.append(
            Finding("llama.cpp", "not installed: pip install llama-cpp-python to compare its text too", None)
        )
    table = Table(title=str(file), title_justify="left")
    for column in ("compared", "result", "equal"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(finding.what, finding.seen, {True: "yes", False: "NO", None: "-"}[finding.passed])
    Console(highlight=False, markup=False).print(table)
    if failed := [finding.what for finding in findings if finding.passed is False]:
        raise CheckpointError(f"{file} is not the model of {path}: they differ in {', '.join(failed)}. Export it again")


def open_gguf(file: Path) -> GGUFReader:
    """Open a GGUF file. Raises CheckpointError if it is missing or damaged."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file. Export it: python -m mini_llm export gguf MODEL_DIR --out {file}")
    try:
        return GGUFReader(file)
    except Exception as error:  # a damaged file can raise anything in the library
        raise CheckpointError(f"{file}: not a GGUF file, or damaged ({str(error)[:120]}). Export it again") from None


def check_header(source: Source, fields: dict[str, Any]) -> Finding:
    kinds = {int(file_type): file_type for _, file_type in FILE_TYPES.values()}
    written = fields.get(Keys.General.FILE_TYPE)
    expected = header(source, kinds.get(written, LlamaFileType.ALL_F32))
    expected[Keys.General.ARCHITECTURE] = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[source.layout.model_type]]
    # The name comes from the folder, which may have been renamed.
    del expected[Keys.General.NAME]
    different = [key for key, value in expected.items() if not _same(fields.get(key), value)]
    shown = "; ".join(f"{key} is {fields.get(key)}, not {expected[key]}" for key in different[:3])
    return Finding(
        "metadata", shown or f"{len(expected)} keys of {fields.get(Keys.General.ARCHITECTURE)}", not different
    )


def _same(found: Any, value: Any) -> bool:
    return found == (float(np.float32(value)) if isinstance(value, float) else value)


def check_tensors(source: Source, reader: GGUFReader, fields: dict[str, Any]) -> Finding:
    """Compare all tensors: F32 must be equal, other types must agree within their rounding error."""
    wanted = {int(file_type): kind for kind, file_type in FILE_TYPES.values()}.get(fields.get(Keys.General.FILE_TYPE))
    found = {tensor.name: tensor for tensor in reader.tensors}
    if wanted is None:
        return Finding(
            "tensors", f"file type {fields.get(Keys.General.FILE_TYPE)} is not one of {', '.join(FILE_TYPES)}", False
        )
    counts, problems, largest, worst = Counter(), [], 0.0, 0.0
    for name, tensor in tensors(source.layout, source.model.config, source.model.state_dict()):
        expected, entry = tensor.numpy(), found.pop(name, None)
        if entry is None:
            problems.append(f"{name} is missing")
            continue
        values = gguf.quants.dequantize(entry.data, entry.tensor_type)
        if values.shape != expected.shape or entry.tensor_type is not type_of(name, expected, wanted):
            problems.append(f"{name} is {entry.tensor_type.name} {values.shape}")
            continue
        difference, bound = np.abs(values - expected), rounding(expected, entry.tensor_type)
        if not (difference <= bound).all():
            problems.append(f"{name} differs by {difference.max():.3g}")
        counts[entry.tensor_type.name] += 1
        largest = max(largest, float(difference.max(initial=0)))
        worst = max(worst, float((difference / np.maximum(bound, np.finfo(np.float32).tiny)).max(initial=0)))
    problems += [f"{name} is not in the model" for name in found]
    seen = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    if largest:
        seen += f"; largest difference {largest:.2g}, at most {worst:.0%} of the allowed rounding error"
    return Finding("tensors", "; ".join(problems[:3]) or seen, not problems)


def rounding(values: np.ndarray, kind: Type) -> np.ndarray:
    """Return the largest rounding error of each value when stored as `kind`."""
    size = np.abs(values)
    if kind is Type.F32:
        return np.zeros_like(size)
    if kind is Type.BF16:
        return size * 2**-8
    if kind is Type.F16:
        # Subnormals (below 2^-14) have a fixed step of 2^-24.
        return size * 2**-11 + 2**-25
    # Q8_0: half a step of max(block) / 127, plus the rounding of that step to F16, times at most 127.
    block = gguf.GGML_QUANT_SIZES[Type.Q8_0][0]
    largest = size.reshape(-1, block).max(axis=1, keepdims=True)
    bound = largest / 254 * (1 + 2**-10) + largest * 2**-11 + 127 * 2**-25
    return np.broadcast_to(bound, (len(bound), block)).reshape(values.shape)


def check_vocabulary(source: Source, fields: dict[str, Any]) -> Finding:
    """Compare the vocabulary of the file with the one of the directory, entry by entry."""
    expected, found = source.vocabulary, vocabulary_of(fields)
    lists = ("model", "pre", "tokens", "types", "merges")
    different = [name for name in lists if getattr(expected, name) != getattr(found, name)]
    if not np.array_equal(np.asarray(expected.scores or [], np.float32), np.asarray(found.scores or [], np.float32)):
        different.append("scores")
    settings = {key: list(value) if isinstance(value, bytes) else value for key, value in expected.settings.items()}
    different += [key for key, value in settings.items() if fields.get(key) != value]
    kinds = Counter(TokenType(kind).name.lower().replace("_", " ") for kind in found.types)
    seen = f"{found.model}: {', '.join(f'{count:,} {kind}' for kind, count in kinds.items())}"
    return Finding("vocabulary", f"differs in {', '.join(different)}" if different else seen, not different)
