"""Load a model for generation: find its directory, reject models that cannot generate, choose device and dtype."""

import difflib
import sys
from pathlib import Path
from typing import Any

from mini_llm.engine.device import choose_device
from mini_llm.engine.errors import CheckpointError, ConfigError
from mini_llm.engine.kernels.decode import KINDS, CompiledStep, round_to_int8, unsupported
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import read_json
from mini_llm.engine.run.state import read_state
from mini_llm.model import CausalLM, Seq2SeqLM, load_model
from mini_llm.model.huggingface.layouts import LAYOUTS
from mini_llm.tokenization.load import load_tokenizer

from .config import GenerateConfig
from .decode import TextGenerator

RUNS = Path("runs")


def load_generator(
    path: Path, config: GenerateConfig, device: str = "auto", dtype: str = "auto", compiled: bool = True
) -> TextGenerator:
    """Load the model and tokenizer at `path` (a model or run directory) onto a device.

    On a CPU, uses the compiled decode step unless `compiled` is false, the step does not support the architecture or no
    compiler is installed. int8 requires the compiled step.
    Raises CheckpointError, ConfigError, ModelDirectoryError.
    """
    directory = find_generator(path)
    _refuse_other_heads(directory)
    int8 = dtype == "int8"
    place, kind = choose_device(device, "fp32" if int8 else dtype)
    model: CausalLM | Seq2SeqLM
    if _writes(directory) == "seq2seq":
        model = load_model(directory, head="seq2seq")
    else:
        model = load_model(directory, head="causal")
    tokenizer = load_tokenizer(directory, model.config.vocab_size)
    if tokenizer.remark:
        print(f"generate: {tokenizer.remark}", file=sys.stderr)
    model.to(place, kind)
    step = compile_step(model, int8) if compiled or int8 else None
    return TextGenerator(model, tokenizer, config, end_ids(directory), step)


def compile_step(model: CausalLM | Seq2SeqLM, int8: bool) -> CompiledStep | None:
    """Return the compiled step, or None if the model or machine cannot use it. Raises ConfigError then for int8."""
    weight, problem = model.lm_head.weight, None
    if weight.device.type != "cpu":
        problem = f"it needs a CPU, but the device is {weight.device.type}"
    elif weight.dtype not in KINDS:
        problem = f"it does not support {weight.dtype}"
    elif (setting := unsupported(model.config)) or not isinstance(model, CausalLM):
        problem = f"it does not support {setting}"
    else:
        if int8:
            round_to_int8(model)
        try:
            return CompiledStep(model, int8)
        except OSError as error:
            problem = str(error)
    if int8:
        raise ConfigError(f"--dtype int8 needs the compiled decode step, but {problem}; use --dtype bf16 or fp32")
    return None


def find_generator(path: Path) -> Path:
    """Return the model directory at `path`.

    Raises CheckpointError suggesting the nearest existing model that generates text.
    """
    directory = find_model(path)
    if directory is not None:
        return directory
    if not path.exists():
        problem = "no such directory"
    elif not path.is_dir():
        problem = "a file, not a model directory"
    elif (path / "checkpoints").is_dir():
        problem = "a run without a model yet; repeat the command that started it to finish it"
    elif (path / "tokenizer.model").is_file() and not list(path.glob("*.safetensors")):
        problem = "a tokenizer, not a model"
    else:
        problem = "no config.json here or in model/, so this is not a model directory"
    raise CheckpointError(f"{path}: {problem}. {_suggest(path)}")


def end_ids(directory: Path) -> list[int]:
    """Return the eos ids of generation_config.json, or else of config.json; each may hold none, one or a list."""
    for name in ("generation_config.json", "config.json"):
        value = (read_state(directory / name, dict[str, Any]) or {}).get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(token) is int for token in ids):
                raise CheckpointError(f"{directory / name}: eos_token_id = {value!r} is neither a token id nor a list")
            return ids
    return []


def _refuse_other_heads(directory: Path) -> None:
    names = _read_object(directory / "config.json").get("architectures")
    for name in map(str, names if isinstance(names, list) else []):
        if name.endswith(("ForMaskedLM", "ForPreTraining")):
            raise CheckpointError(
                f"{directory}: a masked language model ({name}) cannot continue a text. {_suggest(directory)} "
                f"To fill masks: python -m generate {directory} --fill 'a <mask> text'. "
                "To fine-tune a masked model: python -m finetune --help"
            )
        if name.endswith(("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")):
            raise CheckpointError(
                f"{directory}: a classifier ({name}) returns labels, not text. "
                f"Use: python -m finetune predict {directory} FILE. {_suggest(directory)}"
            )


def _writes(directory: Path) -> str | None:
    """Return the head of the model in `directory` if it generates text ("causal" or "seq2seq"), else None."""
    config = _read_object(directory / "config.json")
    layout = LAYOUTS.get(str(config.get("model_type")))
    names = config.get("architectures")
    head = layout.head_of(names) if layout and isinstance(names, list) else None
    return head if head in ("causal", "seq2seq") else None


def _suggest(path: Path) -> str:
    """Return a sentence that names the existing text model with the path nearest to `path`."""
    roots = {RUNS, path.parent}
    configs = {c for root in roots for pattern in ("*/config.json", "*/model/config.json") for c in root.glob(pattern)}
    runs = {}
    for config in sorted(configs):
        if _writes(config.parent):
            run = config.parent.parent if config.parent.name == "model" else config.parent
            runs[str(run)] = run
    if not runs:
        return "There is no trained model yet: `make pretrain` trains one."
    near = difflib.get_close_matches(str(path), runs, 1, 0) or [next(iter(runs))]
    return f"Did you mean {near[0]}?"


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object at `path`, or {} if it is missing or damaged (load_model reports damage)."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}
