"""A Hugging Face directory of weights that are never held all at once: tensor by tensor, in files of bounded size."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mini_llm.model.huggingface.directory import INDEX, WEIGHTS, tied_names, write_config

SHARD_BYTES = 5 * 10**9


def stream_model(
    model: nn.Module, weight: Callable[[str], Tensor | None], directory: Path | None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `model` to `directory` with the weights that `weight(our name)` gives, each asked for once.

    The order is fixed: where `weight` is collective, every rank calls this, and those that write nothing have no
    directory and get None. No more than a file and a tensor are in memory. A disk error is raised at the end: until
    then the other ranks wait for this one at each weight. Raises OSError, SafetensorError, LayoutError.
    """
    layout = write_config(model, directory)
    config, own = model.config, set(model.state_dict())
    tied = tied_names(layout) if config.tie_word_embeddings else []
    shards: list[dict[str, Tensor]] = [{}]
    files: list[list[str]] = []
    size = total = 0
    failure: Exception | None = None

    def close() -> None:
        save_file(shards[0], str(directory / f"shard-{len(files)}"), metadata={"format": "pt"})
        files.append(list(shards[0]))
        shards[0] = {}

    for theirs, entry in layout.names(config):
        if theirs in tied or not all(name in own for name in entry.ours):
            continue
        parts = [weight(name) for name in entry.ours]
        if directory is None or failure is not None:
            continue
        tensor = entry.join(parts).detach().float().cpu().contiguous()
        bytes_of_it = tensor.numel() * tensor.element_size()
        try:
            if shards[0] and size + bytes_of_it > shard_bytes:
                close()
                size = 0
        except (OSError, SafetensorError) as error:
            failure = error
            continue
        shards[0][theirs] = tensor
        size, total = size + bytes_of_it, total + bytes_of_it
    if failure is not None:
        raise failure
    if directory is not None:
        close()
        _name(directory, files, total)


def _name(directory: Path, files: list[list[str]], total: int) -> None:
    """The names that transformers looks for: one file, or numbered ones and their index."""
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
