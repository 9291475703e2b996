"""`python -m chaos`: run the fault campaign and print what was expected and what was seen."""

import json
import os
import random
import shutil
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

# Before torch: many processes on few cores, forked without threads.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", LLM_FAULT="")

MODULES = [
    "kills",
    "signals",
    "damage",
    "hostile",
    "disk",
    "changes",
    "inputs",
    "online",
    "elastic",
    "numbers",
    "ranks",
    "controls",
]
# Enough to see that the campaign and what it tries still work, in less than a minute.
SHORT = ("3", "4", "8", "13", "15", "17", "40", "B1", "B4")

app = typer.Typer(add_completion=False)


@app.command()
def campaign(
    only: Annotated[str, typer.Option(help="Numbers of faults, separated by commas: 4,13,B1. 'short': a few.")] = "",
    seed: Annotated[int, typer.Option(help="Of the moments at which things happen.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A sample of each fault's cases.")] = False,
    kills: Annotated[int, typer.Option(help="Kills at random moments.")] = 200,
    output: Annotated[Path, typer.Option(help="Where the results go, as JSON.")] = Path("runs/chaos.json"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folders of faults that differ.")] = False,
) -> None:
    """Do to runs what can happen to them and compare what is left with an undisturbed run.

    Exit code 1 when anything differs from what is expected, also when a broken saver is not caught. Faults that this
    machine cannot try are listed as such.
    """
    from rich.console import Console
    from rich.table import Table

    from chaos import child
    from chaos.lab import Lab
    from chaos.registry import FAULTS, Differs, NotHere

    for name in MODULES:
        import_module(f"chaos.{name}")
    child.preload()
    wanted = set(SHORT if only == "short" else filter(None, only.split(",")))
    unknown = wanted - {str(fault.number) for fault in FAULTS}
    if unknown:
        raise typer.BadParameter(f"no such fault: {', '.join(sorted(unknown))}", param_hint="--only")
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    lab = Lab(root, seed, quick, kills)
    console = Console()
    rows = []
    for fault in FAULTS:
        if wanted and str(fault.number) not in wanted:
            continue
        lab.random = random.Random(f"{seed}-{fault.number}")
        started = time.monotonic()
        row = {"fault": fault.number, "title": fault.title, "expected": fault.expected, "lost_steps": None}
        try:
            seen = fault.run(lab)
            row |= {"result": "as expected", "seen": seen.what, "lost_steps": seen.lost_steps}
        except NotHere as error:
            row |= {"result": "not here", "seen": str(error)}
        except Differs as error:
            row |= {"result": "DIFFERS", "seen": str(error)}
        except Exception as error:
            row |= {"result": "DIFFERS", "seen": f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1500:]}"}
        row["seconds"] = round(time.monotonic() - started, 1)
        rows.append(row)
        console.print(
            f"{row['fault']!s:>4}  {row['result']:11} {row['seconds']:7.1f} s  {fault.title}: {row['seen'][:200]}",
            markup=False,
            highlight=False,
        )
    # Without a terminal the table is as wide as it needs to be to be read.
    console = Console(width=None if console.is_terminal else 160)
    table = Table("fault", "", "expected", "seen", "lost steps", "s", title=f"Fault campaign, seed {seed}")
    for row in rows:
        lost = "" if row["lost_steps"] is None else str(row["lost_steps"])
        seen = row["seen"] if row["result"] == "as expected" else f"{row['result']}: {row['seen'][:300]}"
        style = "bold red" if row["result"] == "DIFFERS" else None
        table.add_row(
            str(row["fault"]), row["title"], row["expected"], seen, lost, f"{row['seconds']:.0f}", style=style
        )
    console.print(table)
    differing = [row for row in rows if row["result"] == "DIFFERS"]
    console.print(
        f"{len(rows)} faults in {sum(row['seconds'] for row in rows):.0f} s: "
        f"{sum(row['result'] == 'as expected' for row in rows)} as expected, {len(differing)} differ, "
        f"{sum(row['result'] == 'not here' for row in rows)} cannot be tried here",
        markup=False,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"seed": seed, "quick": quick, "faults": rows}, indent=2) + "\n")
    if keep and differing:
        console.print(f"folders: {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)
    raise typer.Exit(1 if differing else 0)


if __name__ == "__main__":
    app(prog_name="python -m chaos")
