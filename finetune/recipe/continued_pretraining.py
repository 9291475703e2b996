"""Continue pretraining on the texts of the task before fine-tuning (Gururangan et al. 2020, "Don't Stop Pretraining").

A model that was pretrained for minutes on other text gains from minutes of the task's own, labelled or not. They are a
run of `pretrain --init` in the folder pretraining/ of the fine-tuning run: it has a plan, resumes and is recorded as
any other. Validation and test texts are not read.
"""

import json
import time
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState
from pydantic import BaseModel, NonNegativeFloat
from rich.console import Console

from mini_llm import stages
from mini_llm.engine.checkpoint.format import has_checkpoint
from mini_llm.engine.config import build_config
from mini_llm.engine.distributed.collectives import broadcast
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_atomic, write_json
from mini_llm.engine.run.state import read_state
from mini_llm.model.huggingface.directory import read_config

from ..config import FinetuneConfig
from ..examples import Splits
from ..quality.overlap import overlap_with_corpus, pretraining_sources
from .pretrained_tokens import LARGEST_WIDTH, pretrained_briefly

FOLDER, TEXTS, RECORD = "pretraining", "pretraining.jsonl", "pretraining.json"
# By default: the share of the budget, and the least budget and number of characters.
SHARE, LEAST_BUDGET, LEAST_CHARACTERS = 1 / 3, 300.0, 2_000_000
# Texts that are looked for in the pretraining corpus; from this share on the model knows the texts of the task.
LOOKED_FOR, KNOWN = 500, 0.5


class Continued(BaseModel):
    """pretraining.json: the part of the budget that has gone into pretraining."""

    seconds: NonNegativeFloat


def continue_pretraining(
    config: FinetuneConfig, source: Path, splits: Splits, processes: PartialState, run: RunDirectory, console: Console
) -> tuple[FinetuneConfig, Path]:
    """Return the model directory to fine-tune, and `config` with the rest of the budget.

    Raises ConfigError if continued_pretraining asks for what cannot be done.
    """
    known = read_state(run.path / RECORD, Continued, aside=run.main_process)
    if known is None and has_checkpoint(run.path):
        return config, source
    if known is None:
        texts = own_texts(config, splits)
        share, reason = choose_share(config, source, texts)
        if reason:
            console.print(reason, markup=False)
        if not share:
            return config, source
        started, resumes = time.perf_counter(), (run.path / FOLDER).exists()
        seconds = share * (config.budget_seconds or 0.0)
        if run.main_process:
            write_atomic(run.path / TEXTS, "".join(json.dumps({"text": text}) + "\n" for text in texts))
        processes.wait_for_everyone()
        _pretrain(config, source, run.path, seconds)
        spent = time.perf_counter() - started
        # An earlier launch has taken a part of it.
        known = Continued(seconds=broadcast(max(spent, seconds) if resumes else spent, processes))
        if run.main_process:
            write_json(run.path / RECORD, known.model_dump())
    return rest_of_budget(config, known), run.path / FOLDER / "model"


def fine_tuned_from(config: FinetuneConfig, source: Path, run: Path) -> tuple[FinetuneConfig, Path]:
    """What `continue_pretraining` returned for an existing run."""
    known = read_state(run / RECORD, Continued)
    return (config, source) if known is None else (rest_of_budget(config, known), run / FOLDER / "model")


def rest_of_budget(config: FinetuneConfig, known: Continued) -> FinetuneConfig:
    budget = config.budget_seconds
    if budget is None:
        return config
    return config.model_copy(update={"budget": f"{max(budget - known.seconds, 0.1 * budget):.1f}s"})


def own_texts(config: FinetuneConfig, splits: Splits) -> list[str]:
    """The training texts, and the unlabelled ones unless they are the pretraining corpus itself."""
    corpus = {Path(source.path).resolve() for source in pretraining_sources(config.model) or ()}
    new = any(Path(path).resolve() not in corpus for path in config.data.unlabelled or ())
    unlabelled = splits.unlabelled if new else []
    return [example.text for example in splits.train] + unlabelled


def choose_share(config: FinetuneConfig, source: Path, texts: list[str]) -> tuple[float, str]:
    """The share of the budget for continued pretraining, and a line that says why, or why not; "" says nothing."""
    share, budget, characters = config.continued_pretraining, config.budget_seconds, sum(map(len, texts))
    able = _objective(source) if config.weights == "pretrained" else None
    about = f"{characters / 1e6:,.1f} million characters of the training and unlabelled texts"
    if share is not None:
        if share and able is None:
            raise ConfigError(
                f"continued_pretraining={share:g}: {source} is not a pretrained language model with its output layer. "
                "Name one with --model, or leave continued_pretraining out"
            )
        if share and budget is None:
            raise ConfigError(f"continued_pretraining={share:g} is a share of the budget; give one, such as budget=10m")
        return share, f"pretraining goes on with {about} for {share:.0%} of the budget" if share else ""
    if able != "masked" or budget is None or budget < LEAST_BUDGET or characters < LEAST_CHARACTERS:
        return 0.0, ""
    if read_config(source)["hidden_size"] >= LARGEST_WIDTH or not pretrained_briefly(source):
        return 0.0, ""
    # The first ones, because only the beginning of the corpus is read, and its order may be that of the texts.
    found = overlap_with_corpus(texts[:LOOKED_FOR], pretraining_sources(config.model) or ())
    if found.shared >= KNOWN * found.texts:
        return 0.0, "the model was pretrained on the texts of the task: pretraining does not go on"
    return SHARE, (
        f"pretraining goes on with {about} for {SHARE:.0%} of the budget, because it was short and knew other texts "
        "(continued_pretraining=0: does not)"
    )


def _objective(source: Path) -> str | None:
    """'masked' or 'causal' for a language model that `pretrain --init` can go on with, else None."""
    names = [str(name) for name in read_config(source).get("architectures") or ()]
    if any(name.endswith("ForMaskedLM") for name in names):
        return "masked"
    return "causal" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else None


def _pretrain(config: FinetuneConfig, source: Path, folder: Path, seconds: float) -> None:
    settings = {
        "init": str(source),
        "run": FOLDER,
        "corpus": {"sources": [{"path": str(folder / TEXTS)}]},
        "budget": f"{seconds:.1f}s",
        "seed": config.seed,
        "runtime": config.runtime.model_dump(mode="json"),
        "tracking": config.tracking.model_dump(mode="json"),
    }
    build = stages.load("pretrain", "config").PretrainConfig
    stages.load("pretrain", "run").pretrain(build_config(build, settings, "continued pretraining"), folder)
    # Accelerate keeps the precision of the first run of a process, and would refuse another.
    AcceleratorState._reset_state()
