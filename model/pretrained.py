"""Hugging Face model directories, in and out: config.json + model.safetensors (or sharded with an index)."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.heads import HEADS
from model.layouts import LAYOUTS, Layout, layout_for

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a new head may leave behind or need anew when a pretrained trunk gets it.
OUTPUT_LAYERS = ("score.", "classifier.")
HEAD_PREFIXES = ("lm_head.", "head.", "pooler.", "next_sentence.", *OUTPUT_LAYERS)


class ModelDirectoryError(ValueError):
    """A model directory that is missing, damaged, or not what was asked for."""

    exit_code = 4


def save_model(model: nn.Module, directory: Path | str, state: dict[str, Tensor] | None = None) -> None:
    """Write `model` as a Hugging Face directory; `state` replaces its own state dict (for gathered ZeRO-3 weights).

    Raises LayoutError when no Hugging Face class holds the architecture.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    head = next(name for name, cls in HEADS.items() if isinstance(model, cls))
    layout = layout_for(config, head)
    theirs = layout.write_config(config, head)
    theirs["dtype"] = "float32"
    state = layout.to_theirs(model.state_dict() if state is None else state, config)
    if config.tie_word_embeddings:
        state = {theirs: tensor for theirs, tensor in state.items() if theirs not in _tied(layout)}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, str(directory / WEIGHTS), metadata={"format": "pt"})
    if head in ("causal", "seq2seq"):
        keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        generation = {key: getattr(config, key) for key in keys if getattr(config, key) is not None}
        (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (directory / "config.json").write_text(json.dumps(theirs, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_model(directory: Path | str, head: str | None = None, **changes: Any) -> nn.Module:
    """Read a Hugging Face directory of a known layout as an fp32 model in evaluation mode.

    `head` ("causal", "masked", "classifier") asks for another head than the one saved; what the directory does not
    hold for it is initialised and named in `model.newly_initialized`. `changes` replace fields of the configuration.
    Raises ModelDirectoryError.
    """
    directory = Path(directory)
    theirs = read_config(directory)
    layout = LAYOUTS[theirs["model_type"]]
    saved = layout.head_of(theirs.get("architectures") or [])
    head = head or saved
    heads = dict.fromkeys(layout.architectures.values())
    if head not in heads:
        raise ModelDirectoryError(
            f"{directory}: a {layout.model_type} model has no '{head}' head; it has {', '.join(heads)}"
        )
    try:
        config = layout.read_config(theirs)
        for key, value in changes.items():
            setattr(config, key, value)
        if head == saved == "classifier" and not config.id2label:
            # transformers leaves its own default out of the file.
            config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
        model = HEADS[head](config)
        # Shared parameters come once, under their first name.
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        tensors = layout.rename(read_tensors(directory))
        state = layout.to_ours(tensors, config, shapes)
    except ModelDirectoryError:
        raise
    except ValueError as error:
        raise ModelDirectoryError(f"{directory}: {error}") from None
    if "id2label" in changes:
        # Other labels than the saved ones: the last layer starts again.
        state = {n: t for n, t in state.items() if not n.startswith(OUTPUT_LAYERS)}
    known = {name for name, _ in layout.names(config)}
    missing = [name for name in shapes if name not in state]
    problems = _second_copies(layout, config, tensors)
    problems += [
        f"{n} is {tuple(t.shape)}, expected {tuple(shapes[n])}" for n, t in state.items() if t.shape != shapes[n]
    ]
    problems += [f"{n} is missing" for n in missing if not (n.startswith(HEAD_PREFIXES) and (changes or head != saved))]
    problems += [f"{name} is not part of a {layout.model_type} model" for name in tensors if name not in known]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelDirectoryError(
            f"{directory}: the weights do not fit config.json: {'; '.join(problems[:5])}{more}. "
            "Take both files from the same model."
        )
    model.load_state_dict(state, strict=False)
    model.newly_initialized = missing
    return model.eval()


def _tied(layout: Layout) -> list[str]:
    """Their names of the vocabulary head's matrix."""
    return [theirs for theirs, ours in layout.tensors.items() if ours == "lm_head.weight"]


def _second_copies(layout: Layout, config: ModelConfig, tensors: dict[str, Tensor]) -> list[str]:
    """Tied matrices that a file holds twice, with different values."""
    embeddings = [theirs for theirs, ours in layout.tensors.items() if str(ours).endswith("embed.weight")]
    if not config.tie_word_embeddings or embeddings[0] not in tensors:
        return []
    first = tensors[embeddings[0]]
    return [
        f"tie_word_embeddings is set, but {name} is not {embeddings[0]}"
        for name in _tied(layout)
        if name in tensors and not tensors[name].equal(first)
    ]


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed config.json of a known family. Raises ModelDirectoryError."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise ModelDirectoryError(f"{directory}: no such directory")
    if not path.is_file():
        raise ModelDirectoryError(f"{directory}: no config.json, so this is not a model directory")
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        family = theirs["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelDirectoryError(f"{path}: not a Hugging Face model configuration ({error})") from None
    if family not in LAYOUTS:
        raise ModelDirectoryError(f"{path}: unknown model_type '{family}'; known are {', '.join(LAYOUTS)}")
    return theirs


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the shards that its index names, in fp32."""
    if (directory / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (directory / INDEX).is_file():
        try:
            files = sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelDirectoryError(f"{directory / INDEX}: not a weight index ({error})") from None
    elif list(directory.glob("*.bin")):
        raise ModelDirectoryError(
            f"{directory}: only pickled weights (.bin), which are never loaded. Convert them where you trust them: "
            "AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    else:
        raise ModelDirectoryError(f"{directory}: no {WEIGHTS} and no {INDEX}")
    tensors: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise ModelDirectoryError(f"{directory / INDEX}: shard name '{name}' leaves the directory")
        try:
            tensors.update(load_file(str(directory / name)))
        except (SafetensorError, OSError) as error:
            raise ModelDirectoryError(f"{directory / name}: unreadable weights ({error})") from None
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
