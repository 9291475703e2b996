"""SST-2 accuracy of a GPT and an MLM encoder pretrained on reviews, beside random weights and TF-IDF.

    python -m benchmarks.sst2 sst2/ imdb/unsup.jsonl.gz --budget 5m

`sst2/` holds train.tsv, dev.tsv and test.tsv with columns sentence and label. Everything goes into --folder, where
finished runs are kept: the command can be given again.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.shakespeare import environment


def main(
    labelled: Annotated[Path, typer.Argument(help="folder with train.tsv, dev.tsv, test.tsv")],
    text: Annotated[Path, typer.Argument(help="unlabelled text to pretrain on")],
    budget: Annotated[str, typer.Option(help="wall time of each pretraining")] = "5m",
    finetune_budget: Annotated[str, typer.Option(help="wall time of each fine-tuning at most")] = "3m",
    folder: Annotated[Path, typer.Option(help="where the runs go")] = Path("sst2-benchmark"),
) -> None:
    folder.mkdir(exist_ok=True)
    data = [f"data.{name}={labelled.resolve() / file}" for name, file in SPLITS.items()]
    data += ["data.text=sentence", f"budget={finetune_budget}"]
    runs = []
    for model in ("gpt", "mlm"):
        call(folder, "pretrain", "--model", model, "--data", str(text.resolve()), "--budget", budget, f"run={model}")
        for weights in ("pretrained", "random"):
            runs.append(f"{model}-{weights}")
            call(folder, "finetune", "--model", f"runs/{model}", f"run={runs[-1]}", f"weights={weights}", *data)
    summaries = [json.loads((folder / "runs" / run / "summary.json").read_text()) for run in runs]
    table = Table("classifier", "accuracy", "standard error", "macro F1", "MCC")
    for row in [*(s["scores"][0] for s in summaries), *summaries[0]["scores"][1:]]:
        figures = (f"{row[key]:.4f}" for key in ("accuracy", "accuracy_error", "macro_f1", "mcc"))
        table.add_row(row["name"], *figures)
    Console(width=100).print(table)
    for model, (trained, scratch) in (("gpt", summaries[:2]), ("mlm", summaries[2:])):
        a, b = trained["scores"][0], scratch["scores"][0]
        error = (a["accuracy_error"] ** 2 + b["accuracy_error"] ** 2) ** 0.5
        print(
            f"{model}: pretrained over random weights by {(a['accuracy'] - b['accuracy']) / error:.1f} standard errors"
        )


SPLITS = {"path": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}


def call(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", *arguments]
    subprocess.run(command, cwd=folder, env=environment(Path(__file__).parent.parent.resolve()), check=True)


if __name__ == "__main__":
    typer.run(main)
