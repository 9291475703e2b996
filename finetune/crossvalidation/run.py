"""Train and score the folds one after another, then train on all rows.

runs/NAME-folds/                config.yaml, summary.json, tables/cross_validation.json
runs/NAME-folds/NAME-fold-1/    one ordinary run per fold, with data.fold=1/5
runs/NAME/                      the run on all rows
"""

from pathlib import Path
from typing import Any

from rich.console import Console

from mini_llm.engine.distributed.processes import start_processes
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.settings import HARMLESS

from ..run import RUNS, finetune
from ..tasks.registry import task_name
from .plan import FOLDS, CrossValidation
from .scores import collect, record


def cross_validate(plan: CrossValidation, runs: Path = RUNS) -> dict[str, Any]:
    """Run or resume all folds and the run on all rows; return what scores.collect returns, {} on other processes.

    Raises the errors of mini_llm.engine.errors.
    """
    processes = start_processes(plan.base.runtime)
    main = processes.is_main_process
    console = Console(stderr=True, quiet=not main, soft_wrap=True)
    plan = plan.named_by_data(runs)
    folder = runs / f"{plan.name}{FOLDS}"
    found: dict[str, Any] = {}
    tree = {"folds": plan.folds, **plan.base.model_dump(mode="json")}
    with RunDirectory(folder, main_process=main) as directory:
        for note in directory.compare_config(tree, HARMLESS):
            console.print(note, markup=False)
        directory.record(tree, "cross-validation")
        for number in range(1, plan.folds + 1):
            config = plan.config(number)
            console.print(f"fold {number} of {plan.folds}, {config.budget}", markup=False)
            finetune(config, folder)
        if main:
            finished = [folder / plan.config(number).run_name for number in range(1, plan.folds + 1)]
            found = collect(finished, task_name(plan.base), plan.base.data.path)
            record(folder, found)
            directory.finish({row["name"]: row[found["metrics"][0]] for row in found["rows"]})
    if plan.final:
        console.print(f"training on all rows: {runs / plan.name}", markup=False)
        finetune(plan.config(None), runs)
        if main:
            found["notes"].append(
                f"{runs / plan.name} is trained on all rows. The scores above are those of the folds, whose models had "
                f"{plan.folds - 1} of {plan.folds} parts of the rows"
            )
    processes.wait_for_everyone()
    return found
