"""The Python interface: load a model, generate, classify, pretrain, fine-tune. `import mini_llm` offers all of it.

Everything runs the code of the stages, which import torch when they are first used. What a user can cause raises an
error of mini_llm.engine.errors, or ModelDirectoryError for a damaged model directory.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, overload

from mini_llm import stages
from mini_llm.engine.config import Config, build_config, load_config
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import read_json
from mini_llm.engine.run.inputs import named_by_data

RUNS = Path("runs")


class LanguageModel:
    """A decoder or an encoder-decoder with its tokenizer, ready to write text. Made by `load`."""

    def __init__(self, path: Path, device: str = "auto", dtype: str = "auto") -> None:
        self._settings: type[Config] = stages.load("generate", "config").GenerateConfig
        self._generator = stages.load("generate", "load").load_generator(path, self._settings(), device, dtype)

    @overload
    def generate(self, prompt: str, **settings: Any) -> str: ...
    @overload
    def generate(self, prompt: Sequence[str], **settings: Any) -> list[str]: ...
    def generate(self, prompt: str | Sequence[str], **settings: Any) -> str | list[str]:
        """The text that continues `prompt`, without the prompt; for a list of prompts, a list of texts.

        Settings, with their defaults: max_new_tokens (200), temperature (0.8; 0 is greedy), top_k (0, all), top_p
        (0.95), seed (0), stop ([], strings to end before), num_beams (1), regex, json_schema (a text or a dict) and all
        others of docs/settings.md. The same seed gives the same text, in any list of prompts. Raises ConfigError for a
        wrong setting, NonFiniteError when the model computes NaN.
        """
        self._configure(settings)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        samples = [self._generator.sample(text) for text in prompts]
        for _ in self._generator.write(samples):
            pass
        return samples[0].text if isinstance(prompt, str) else [sample.text for sample in samples]

    def stream(self, prompt: str, **settings: Any) -> Iterator[str]:
        """The text that `generate` returns, in parts as they are written."""
        self._configure(settings)
        return self._generator.stream(self._generator.sample(prompt))

    def choose(self, prompt: str, choices: Sequence[str]) -> dict[str, float]:
        """The probability of each continuation among `choices` after `prompt`, most probable first.

        Raises ConfigError for an empty or repeated choice, NonFiniteError when the model computes NaN.
        """
        ranked = stages.load("generate", "choices").rank_choices(self._generator, prompt, list(choices))
        return {choice.text: choice.probability for choice in ranked}

    def _configure(self, settings: dict[str, Any]) -> None:
        self._generator.configure(build_config(self._settings, {**settings, "num_samples": 1}, "generate"))


@dataclass(frozen=True)
class Label:
    """The most probable label of a text, its probability, and the probability of every label."""

    label: str
    probability: float
    probabilities: dict[str, float]


class TextClassifier:
    """A fine-tuned classifier with its tokenizer. Made by `load`."""

    def __init__(self, path: Path) -> None:
        self._classifier = stages.load("finetune", "predict").Classifier(path)

    @property
    def labels(self) -> list[str]:
        """The names of the labels, in the order of the model's outputs."""
        return list(self._classifier.names)

    @overload
    def classify(self, texts: str, batch_size: int = 32) -> Label: ...
    @overload
    def classify(self, texts: Sequence[str], batch_size: int = 32) -> list[Label]: ...
    def classify(self, texts: str | Sequence[str], batch_size: int = 32) -> Label | list[Label]:
        """A Label for each text, in order; one Label for one string. Long texts are cut to what the model reads.

        Probabilities are calibrated if the directory holds a calibration.
        """
        rows = self._classifier.calibrated([texts] if isinstance(texts, str) else list(texts), batch_size)
        found = [
            Label(self.labels[row.argmax()], float(row.max()), dict(zip(self.labels, row.tolist(), strict=True)))
            for row in rows
        ]
        return found[0] if isinstance(texts, str) else found


@dataclass(frozen=True)
class Run(PathLike[str]):
    """A finished run: its directory and final scores. It stands for its path in `load` and `finetune`."""

    path: Path
    scores: dict[str, float]

    def __fspath__(self) -> str:
        return str(self.path)

    def load(self) -> Any:
        """The model of the run; see `mini_llm.load`."""
        return load(self)


def load(path: str | PathLike[str], device: str = "auto", dtype: str = "auto") -> Any:
    """The model at `path`, a run or a Hugging Face directory: a TextClassifier, or a LanguageModel that generates.

    For a masked language model, an object whose `fill("a <mask> text", count=5)` gives candidates for each mask.
    `device` ("auto", "cpu", "cuda", ...) and `dtype` ("auto", "fp32", "bf16", "fp16"; "int8" on a CPU) are for language
    models. Raises CheckpointError for any other model, ModelDirectoryError for a damaged one.
    """
    directory = find_model(Path(path))
    config = (read_json(directory / "config.json") if directory else None) or {}
    names = config.get("architectures") if isinstance(config, dict) else None
    if any(str(name).endswith("ForSequenceClassification") for name in names or ()):
        return TextClassifier(Path(path))
    if any(str(name).endswith("ForMaskedLM") for name in names or ()):
        return stages.load("generate", "fill").load_filler(Path(path), device, dtype)
    return LanguageModel(Path(path), device, dtype)


def pretrain(
    data: str | PathLike[str] | Sequence[str] | None = None,
    budget: str | None = None,
    model: str | None = None,
    init: str | PathLike[str] | None = None,
    run: str | None = None,
    **settings: Any,
) -> Run:
    """Pretrain a model on `data` within `budget` ("30s", "10m", "4h"), or go on with an unfinished run.

    data: file, folder, glob or dataset org/name, or several of them; default: the standard library's source code
    model: gpt (the default), mlm, or another architecture by name; init: a directory or run to go on from instead
    run: its name under runs/; default: by model and data
    settings: any other setting, as max_steps=100, optim={"lr": 1e-3} or **{"optim.lr": 1e-3}

    Raises ConfigError, DataError, CheckpointError, NonFiniteError.
    """
    sources = data if data is None or isinstance(data, (str, PathLike)) else list(data)
    given = {"corpus.sources": sources, "budget": budget, "model": model, "init": init, "run": run}
    config = _config("pretrain", "PretrainConfig", given, settings)
    stages.load("pretrain", "plan_command").check_fits(config)
    return _run("pretrain", config)


def finetune(
    model: str | PathLike[str] | None = None,
    data: str | PathLike[str] | None = None,
    budget: str | None = None,
    run: str | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune a pretrained model as a classifier on labelled `data`, or go on with an unfinished run.

    model: a run or a Hugging Face directory; default: runs/gpt
    data: file, glob or dataset name with the columns text and label (others: **{"data.text": "review"}); default: the
        built-in task
    budget, run, settings: as in `pretrain`

    Raises ConfigError, DataError, CheckpointError, NonFiniteError.
    """
    given = {"model": model, "data.path": data, "budget": budget, "run": run}
    return _run("finetune", _config("finetune", "FinetuneConfig", given, settings))


def finetune_in(runs: Path, settings: dict[str, Any]) -> Run:
    """`finetune` with all `settings` by key ("data.path", ...) and the run in the folder `runs`, not in runs/."""
    config = _config("finetune", "FinetuneConfig", {}, settings)
    return _run("finetune", config, runs)


def _config(stage: str, name: str, given: dict[str, Any], settings: dict[str, Any]) -> Any:
    """The stage's configuration. An argument left at None is not given; a setting of None is."""
    values = {key: value for key, value in given.items() if value is not None} | settings
    overrides = [(key, os.fspath(value) if isinstance(value, os.PathLike) else value) for key, value in values.items()]
    return load_config(getattr(stages.load(stage, "config"), name), overrides=overrides)


def _run(stage: str, config: Any, runs: Path = RUNS) -> Run:
    from accelerate.state import AcceleratorState

    # Accelerate keeps the precision of the first run of a process, and would refuse another.
    AcceleratorState._reset_state()
    config = named_by_data(config, runs)
    module = stages.load(stage, "run")
    scores = module.pretrain(config) if stage == "pretrain" else module.finetune(config, runs)
    return Run(runs / config.run_name, scores)
