"""`python -m chaos`: run the fault campaign and print expected and observed behaviour of every fault."""

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

# Set before torch is imported: many processes share few cores, and the parent forks, so it must not start threads.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", LLM_FAULT="")

MODULES = [
    "kills",
    "signals",
    "damage",
    "state",
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
# The short campaign of `make test`: it takes less than a minute and covers kills, damage, disks and broken savers.
SHORT = ("3", "4", "8", "13", "15", "17", "40", "B1", "B4")

app = typer.Typer(add_completion=False)


@app.command()
def campaign(
    only: Annotated[str, typer.Option(help="Fault numbers, separated by commas: 4,13,B1. 'short' runs a few.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the random moments.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Run only a sample of the cases of each fault.")] = False,
    kills: Annotated[int, typer.Option(help="Number of kills at random moments (fault H3).")] = 200,
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("runs/chaos.json"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the working folders if a fault differs.")] = False,
) -> None:
    """Inject faults into runs (kill -9, full disk, bit flips, dead ranks) and compare them with an undisturbed run.

    The exit code is 1 if anything differs from the expected behaviour or a broken saver is not caught. Faults that
    cannot be tested on this machine are reported as such.
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
        raise typer.BadParameter(f"unknown fault: {', '.join(sorted(unknown))}", param_hint="--only")
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
    # Without a terminal rich would use 80 columns, too few for this table.
    console = Console(width=None if console.is_terminal else 160)
    table = Table("fault", "", "expected", "observed", "lost steps", "s", title=f"Fault campaign, seed {seed}")
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
        f"{sum(row['result'] == 'not here' for row in rows)} cannot be tested here",
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
