"""Write a Hugging Face model directory tensor by tensor, in files of bounded size, for weights that exceed memory."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from mini_llm.model.heads import Model
from mini_llm.model.huggingface.directory import INDEX, WEIGHTS, tied_names, write_config
from mini_llm.model.huggingface.weights import save_tensors

SHARD_BYTES = 5 * 10**9


def stream_model(
    model: Model, weight: Callable[[str], Tensor | None], directory: Path | None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `model` to `directory` with the weights that `weight(name in our state dict)` returns, one call for each.

    The order is fixed, so `weight` may be a collective operation. Then every rank calls this function; ranks that do
    not write pass None as directory, and their `weight` may return None. Memory holds at most one file and one tensor.
    A disk error is raised only at the end, because the other ranks wait for this one at each weight.
    Raises OSError, SafetensorError, LayoutError.
    """
    layout = write_config(model, directory)
    config, own = model.config, set(model.state_dict())
    tied = tied_names(layout) if config.tie_word_embeddings else []
    shards: list[dict[str, Tensor]] = [{}]
    files: list[list[str]] = []
    size = total = 0
    failure: Exception | None = None

    def close(directory: Path) -> None:
        save_tensors(shards[0], directory / f"shard-{len(files)}", {"format": "pt"})
        files.append(list(shards[0]))
        shards[0] = {}

    for theirs, entry in layout.names(config):
        if theirs in tied or not all(name in own for name in entry.ours):
            continue
        given = [weight(name) for name in entry.ours]
        if directory is None or failure is not None:
            continue
        parts = [part for part in given if part is not None]
        tensor = entry.join(parts).detach().float().cpu().contiguous()
        tensor_bytes = tensor.numel() * tensor.element_size()
        try:
            if shards[0] and size + tensor_bytes > shard_bytes:
                close(directory)
                size = 0
        except (OSError, SafetensorError) as error:
            failure = error
            continue
        shards[0][theirs] = tensor
        size, total = size + tensor_bytes, total + tensor_bytes
    if failure is not None:
        raise failure
    if directory is not None:
        close(directory)
        _name(directory, files, total)


def _name(directory: Path, files: list[list[str]], total: int) -> None:
    """Rename the files as transformers expects: a single one, or numbered shards and an index."""
    if len(files) == 1:
        (directory / "shard-0").rename(directory / WEIGHTS)
        return
    places = {}
    for number, tensors in enumerate(files):
        name = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / name)
        places |= dict.fromkeys(tensors, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
