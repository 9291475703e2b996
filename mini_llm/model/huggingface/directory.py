"""Read and write Hugging Face model directories: config.json and model.safetensors, or shards with an index."""

import json
from pathlib import Path
from typing import Any, Literal, overload

from safetensors import SafetensorError
from torch import Tensor

from mini_llm.model.config import ModelConfig
from mini_llm.model.heads import (
    HEADS,
    CausalLM,
    MaskedLM,
    Model,
    QuestionAnswerer,
    Seq2SeqLM,
    SequenceClassifier,
    TokenClassifier,
)
from mini_llm.model.huggingface.layouts import LAYOUTS, Layout, LayoutError, layout_for
from mini_llm.model.huggingface.packed import PACKED, unpack
from mini_llm.model.huggingface.weights import check_regular, load_tensors, save_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Parameters that may be dropped or newly initialized when a pretrained trunk gets another head.
OUTPUT_LAYERS = ("score.", "classifier.", "qa_outputs.")
HEAD_PREFIXES = ("lm_head.", "head.", "pooler.", "next_sentence.", *OUTPUT_LAYERS)


class ModelDirectoryError(ValueError):
    """A model directory that is missing, damaged, or of the wrong kind."""

    exit_code = 4


def save_model(model: Model, directory: Path | str, state: dict[str, Tensor] | None = None) -> None:
    """Write `model` as a Hugging Face directory. `state` replaces its state dict (for gathered ZeRO-3 weights).

    Raises LayoutError if no Hugging Face class fits the architecture.
    """
    directory = Path(directory)
    layout = write_config(model, directory)
    state = layout.to_theirs(model.state_dict() if state is None else state, model.config)
    if model.config.tie_word_embeddings:
        state = {theirs: tensor for theirs, tensor in state.items() if theirs not in tied_names(layout)}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    save_tensors(tensors, directory / WEIGHTS, {"format": "pt"})


def write_config(model: Model, directory: Path | None) -> Layout:
    """Return the layout of `model`; write config.json and generation_config.json if there is a directory.

    Raises LayoutError if no Hugging Face class fits the architecture.
    """
    config = model.config
    head = next(name for name, cls in HEADS.items() if isinstance(model, cls))
    layout = layout_for(config, head).for_head(head)
    theirs = layout.write_config(config, head)
    theirs["dtype"] = "float32"
    if directory is None:
        return layout
    directory.mkdir(parents=True, exist_ok=True)
    if head in ("causal", "seq2seq"):
        keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        generation = {key: getattr(config, key) for key in keys if getattr(config, key) is not None}
        (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (directory / "config.json").write_text(json.dumps(theirs, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return layout


@overload
def load_model(directory: Path | str, head: Literal["causal"], **changes: Any) -> CausalLM: ...
@overload
def load_model(directory: Path | str, head: Literal["masked"], **changes: Any) -> MaskedLM: ...
@overload
def load_model(directory: Path | str, head: Literal["seq2seq"], **changes: Any) -> Seq2SeqLM: ...
@overload
def load_model(directory: Path | str, head: Literal["classifier"], **changes: Any) -> SequenceClassifier: ...
@overload
def load_model(directory: Path | str, head: Literal["tokens"], **changes: Any) -> TokenClassifier: ...
@overload
def load_model(directory: Path | str, head: Literal["questions"], **changes: Any) -> QuestionAnswerer: ...
@overload
def load_model(directory: Path | str, head: str | None = None, **changes: Any) -> Model: ...
def load_model(directory: Path | str, head: str | None = None, **changes: Any) -> Model:
    """Read a Hugging Face directory of a known family as an fp32 model in evaluation mode.

    `head` ("causal", "masked", "seq2seq", "classifier", "tokens", "questions") selects another head than the saved one.
    Parameters that the directory lacks for it are initialized and listed in `model.newly_initialized`; tensors of the
    directory that the model does not use are listed in `model.left_behind`. `changes` replace fields of the
    configuration. Raises ModelDirectoryError.
    """
    directory = Path(directory)
    theirs = read_config(directory)
    layout = LAYOUTS[theirs["model_type"]]
    saved = layout.head_of(theirs["architectures"])
    layout = layout.for_head(saved)
    head = head or saved
    heads = dict.fromkeys(layout.architectures.values())
    if head is None:
        raise ModelDirectoryError(
            f"{directory}/config.json: architectures = {theirs['architectures']} names no known head; "
            f"known are {', '.join(layout.architectures)}"
        )
    if head not in heads:
        raise ModelDirectoryError(
            f"{directory}: a {layout.model_type} model has no '{head}' head; it has {', '.join(heads)}"
        )
    try:
        config = layout.read_config(theirs)
        for key, value in changes.items():
            setattr(config, key, value)
        if "id2label" in changes and "problem_type" not in changes:
            config.problem_type = "single_label_classification"
        if head == saved and head in ("classifier", "tokens") and not config.id2label:
            # transformers does not write its default labels.
            config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
        tensors = layout.rename(read_tensors(directory, theirs))
        check_size(config, sum(tensor.numel() for tensor in tensors.values()))
        model = HEADS[head](config)
        # named_parameters lists a shared parameter once, under its first name.
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        state = layout.to_ours(tensors, config, shapes)
    except ModelDirectoryError:
        raise
    except ValueError as error:
        raise ModelDirectoryError(f"{directory}: {error}") from None
    if "id2label" in changes:
        # The labels differ from the saved ones: initialize the last layer.
        state = {n: t for n, t in state.items() if not n.startswith(OUTPUT_LAYERS)}
    names = {ours: theirs for theirs, entry in layout.names(config) for ours in entry.ours}
    known = set(names.values())
    missing = [name for name in shapes if name not in state]
    problems = _second_copies(layout, config, tensors)
    problems += [
        f"{names[n]} gives {n} as {tuple(t.shape)}, expected {tuple(shapes[n])}"
        for n, t in state.items()
        if t.shape != shapes[n]
    ]
    problems += [f"{names[n]} holds {t.dtype}, not weights" for n, t in state.items() if not t.is_floating_point()]
    new_head = HEAD_PREFIXES if changes or head != saved else ()
    problems += [f"{names.get(n, n)} is missing" for n in missing if not n.startswith(new_head)]
    problems += [f"{n} is not part of a {layout.model_type} model" for n in tensors if n not in known]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelDirectoryError(
            f"{directory}: the weights do not fit config.json: {'; '.join(problems[:5])}{more}. "
            "Take both files from the same model."
        )
    model.load_state_dict(state, strict=False)
    model.newly_initialized = missing
    copies = tied_names(layout) if config.tie_word_embeddings else ()
    model.left_behind = [
        name
        for name, entry in layout.names(config)
        if name in tensors and name not in copies and not all(ours in state for ours in entry.ours)
    ]
    return model.eval()


def check_size(config: ModelConfig, held: int) -> None:
    """Raise LayoutError, before allocating memory, for a configuration that needs far more than the `held` weights."""
    layers = config.num_hidden_layers + (config.num_decoder_layers or 0)
    rows = config.vocab_size + layers * (config.num_attention_heads * config.head_dim + config.intermediate_size)
    rows += config.type_vocab_size + (config.max_position_embeddings if config.position == "learned" else 0)
    least = rows * config.hidden_size
    least += config.relative_buckets * config.num_attention_heads if config.position == "relative" else 0
    if least > held:
        raise LayoutError(f"config.json asks for {least:,} weights at least; the files hold {held:,}")


def tied_names(layout: Layout) -> list[str]:
    """The family's names for the weight of the vocabulary head."""
    return [theirs for theirs, ours in layout.tensors.items() if ours == "lm_head.weight"]


def _second_copies(layout: Layout, config: ModelConfig, tensors: dict[str, Tensor]) -> list[str]:
    """Problems with tied weights that a file contains twice, with different values."""
    embeddings = [theirs for theirs, ours in layout.tensors.items() if str(ours).endswith("embed.weight")]
    if not config.tie_word_embeddings or embeddings[0] not in tensors:
        return []
    first = tensors[embeddings[0]]
    return [
        f"tie_word_embeddings is set, but {name} differs from {embeddings[0]}"
        for name in tied_names(layout)
        if name in tensors and not tensors[name].float().equal(first.float())
    ]


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed config.json of a known family; `architectures` is a list. Raises ModelDirectoryError."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise ModelDirectoryError(f"{directory}: no such directory")
    if not path.exists():
        raise ModelDirectoryError(f"{directory}: no config.json, so this is not a model directory")
    try:
        check_regular(path)
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"{path}: not a JSON file ({_reason(error)})") from None
    family = theirs.get("model_type") if isinstance(theirs, dict) else None
    if not isinstance(family, str):
        raise ModelDirectoryError(f"{path}: not a Hugging Face model configuration: it has no model_type")
    theirs["architectures"] = theirs.get("architectures") or []
    if not isinstance(theirs["architectures"], list):
        raise ModelDirectoryError(f"{path}: architectures = {theirs['architectures']!r} is not a list")
    if family not in LAYOUTS:
        raise ModelDirectoryError(f"{path}: unknown model_type '{family}'; known are {', '.join(LAYOUTS)}")
    return theirs


def read_tensors(directory: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors of model.safetensors, packed.safetensors or the shards in an index, in fp32.

    `config` is the parsed config.json.
    """
    if (directory / WEIGHTS).exists():
        files = [WEIGHTS]
    elif (directory / PACKED).exists():
        files = [PACKED]
    elif (directory / INDEX).exists():
        try:
            check_regular(directory / INDEX)
            files = sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelDirectoryError(f"{directory / INDEX}: not a weight index ({_reason(error)})") from None
    elif list(directory.glob("*.bin")):
        known = LAYOUTS[config["model_type"]].architectures
        name = next((name for name in known if name in config["architectures"]), "AutoModel")
        raise ModelDirectoryError(
            f"{directory}: only pickled weights (.bin), which are never loaded because they can run any program. "
            f'If you trust them, convert them: python -c "from transformers import {name}; '
            f"{name}.from_pretrained('{directory}').save_pretrained('NEW_DIR')\""
        )
    else:
        raise ModelDirectoryError(f"{directory}: no {WEIGHTS} and no {INDEX}")
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelDirectoryError(f"{directory / INDEX}: shard name '{name}' leaves the directory")
        try:
            found = load_tensors(directory / name)
            tensors.update(unpack(found) if name == PACKED else found)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelDirectoryError(f"{directory / name}: unreadable weights ({_reason(error)})") from None
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
