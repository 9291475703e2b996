"""Run fine-tuning: load labelled texts, put a new head on a pretrained model, train, score against baselines."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from mini_llm.engine.config import build_config
from mini_llm.engine.distributed.processes import start_processes
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.replay import Replay
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.files import write_json
from mini_llm.engine.settings import HARMLESS
from mini_llm.engine.tracking.tracker import Tracker
from mini_llm.tokenization.load import load_tokenizer

from .config import FinetuneConfig
from .pretrained import find_pretrained
from .recipe.continued_pretraining import continue_pretraining, fine_tuned_from
from .recipe.texts import load_texts
from .scoring import score_run
from .tasks.registry import SINGLE_LABEL, task_name
from .tasks.run import run_task
from .training import train_classifier

RUNS = Path("runs")


def finetune(
    config: FinetuneConfig, runs: Path = RUNS, train: Callable[..., None] = train_classifier
) -> dict[str, float]:
    """Run or resume `config` in the folder `runs` and return the final scores.

    `train` writes run.model; it has the arguments of train_classifier. Raises the errors of mini_llm.engine.errors.
    """
    processes = start_processes(config.runtime)
    main_process = processes.is_main_process
    console = Console(stderr=True, quiet=not main_process, soft_wrap=True)
    tree = config.model_dump(mode="json")
    source = find_pretrained(Path(config.model))
    with RunDirectory(runs / config.run_name, main_process=main_process) as run:
        for note in run.compare_config(tree, HARMLESS):
            console.print(note, markup=False)
        if run.finished:
            console.print(run.describe_finished(), markup=False)
            return run.finished["scores"]
        tree = run.as_requested(tree, HARMLESS)
        config = build_config(type(config), tree, str(run.path))
        name = task_name(config)
        run.record(tree, "finetune")
        if name != SINGLE_LABEL:
            if config.continued_pretraining:
                raise ConfigError(
                    f"continued_pretraining={config.continued_pretraining:g} is for task={SINGLE_LABEL}, not {name}: "
                    "use `python -m pretrain --init` first"
                )
            scores = run_task(name, config, source, processes, run, tree, console)
            processes.wait_for_everyone()
            return scores
        # The main process downloads Hub datasets once for all.
        with processes.main_process_first():
            splits = load_texts(config)
        if main_process:
            write_json(run.path / "data.json", splits.findings)
        for note in (splits.description, *splits.notes):
            console.print(note, markup=False)
        config, source = continue_pretraining(config, source, splits, processes, run, console)
        with Tracker(run.path, config.tracking, "finetune", tree, main_process, start=source) as tracker:
            tracker.uses(f"{run.path.name}-data", "dataset", run.path / "data.json")
            train(config, source, splits, processes, run, tracker, console)
            scores: dict[str, float] = {}
            if main_process:
                scores = score_run(config, splits, run, tracker, console)
                run.finish(scores)
        processes.wait_for_everyone()
        return scores


def replay(path: Path, step: int, dump: Path | None) -> None:
    """Recompute `step` of the run at `path`. Raises ConfigError."""
    run = RunDirectory(path, main_process=False)
    config = build_config(FinetuneConfig, run.requested(), str(path))
    processes = start_processes(config.runtime)
    source = find_pretrained(Path(config.model))
    if (name := task_name(config)) != SINGLE_LABEL:
        again = Replay(step, load_tokenizer(source).decode, dump)
        run_task(name, config, source, processes, run, {}, Console(quiet=True), again)
        return
    with processes.main_process_first():
        splits = load_texts(config)
    config, source = fine_tuned_from(config, source, path)
    again = Replay(step, load_tokenizer(source).decode, dump)
    with Tracker(path, config.tracking, "finetune", {}, main_process=False) as tracker:
        train_classifier(config, source, splits, processes, run, tracker, Console(quiet=True), again)
