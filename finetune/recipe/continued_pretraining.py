"""Continue pretraining on the texts of the task before fine-tuning (Gururangan et al. 2020, "Don't Stop Pretraining").

It is a `pretrain --init` run in the folder pretraining/ of the fine-tuning run, with its own plan and checkpoints. It
reads no validation or test text. It is off by default, because with budgets of minutes fine-tuning used the time better
(docs/LOG.md).
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
from ..quality.overlap import pretraining_sources

FOLDER, TEXTS, RECORD = "pretraining", "pretraining.jsonl", "pretraining.json"


class Continued(BaseModel):
    """pretraining.json: the part of the budget that has gone into pretraining."""

    seconds: NonNegativeFloat


def continue_pretraining(
    config: FinetuneConfig, source: Path, splits: Splits, processes: PartialState, run: RunDirectory, console: Console
) -> tuple[FinetuneConfig, Path]:
    """Return `config` with the remaining budget, and the model directory to fine-tune.

    Without continued_pretraining both are those given. Raises the errors of check_continues and of pretraining.
    """
    known = read_state(run.path / RECORD, Continued, aside=run.main_process)
    if known is None and has_checkpoint(run.path):
        return config, source
    if known is None:
        if not config.continued_pretraining:
            return config, source
        check_continues(config, source)
        texts, share = own_texts(config, splits), config.continued_pretraining
        console.print(
            f"continued pretraining on {sum(map(len, texts)) / 1e6:,.1f} million characters of training and unlabelled "
            f"texts, for {share:.0%} of the budget",
            markup=False,
        )
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
    """Return `config` with the budget that remains after pretraining, at least a tenth of it."""
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


def check_continues(config: FinetuneConfig, source: Path) -> None:
    """Raise ConfigError unless `source` is a language model and there is a budget to take a share of."""
    asked = f"continued_pretraining={config.continued_pretraining:g}"
    names = [str(name) for name in read_config(source).get("architectures") or ()]
    if not any(name.endswith(("ForMaskedLM", "ForCausalLM", "LMHeadModel")) for name in names):
        raise ConfigError(
            f"{asked}: {source} is not a language model with its output layer. Name one with --model, or leave "
            "continued_pretraining out"
        )
    if config.weights == "random":
        raise ConfigError(f"{asked}: weights=random starts without pretraining; leave one of them out")
    if config.budget_seconds is None:
        raise ConfigError(f"{asked} is a share of the budget; give one, such as budget=10m")


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
