"""Print results as tables, or as one JSON object."""

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from mini_llm.engine.run.files import plain
from mini_llm.stages import load

WIDTH = 160
SCORES = {
    "loss": "loss (nats)",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "accuracy": "accuracy",
    "ece": "calibration error (ECE)",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact": "exact %",
}


def emit(found: dict[str, Any], as_json: bool, show: Callable[[Console, dict[str, Any]], None]) -> None:
    """Print `found` by `show`, or as JSON."""
    if as_json:
        print(json.dumps(plain(found), indent=2, ensure_ascii=False))
    else:
        # A table in a file or a pipe is not cut to 80 columns.
        width = None if sys.stdout.isatty() else WIDTH
        show(Console(width=width, highlight=False, soft_wrap=True, markup=False), found)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def interval(row: dict[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return "" if low is None else f"{number(row[name])} ({number(low)} to {number(high)})"


def show_scores(console: Console, found: dict[str, Any]) -> None:
    """Print what score.score returned."""
    if found["kind"] == "classifier":
        for row in found["files"]:
            load("finetune", "predicting.score").print_scores(row, False)
        return
    console.print(f"{found['model']}: {found['kind']}, {found['parameters']:,} parameters")
    names = [name for name in SCORES if name in found["files"][0]]
    table = Table("file", "rows", *(SCORES[name] for name in names), box=None)
    for row in found["files"]:
        values = (interval(row, name) or number(row[name]) for name in names)
        table.add_row(row["file"], f"{row.get('documents', row.get('pairs')):,}", *values)
        if "copy_bleu" in row:
            table.add_row("  copying the source", "", *(number(row.get(f"copy_{name}")) for name in names))
    console.print(table)
    resampled = {row.get("resampled", "pairs") for row in found["files"]}
    console.print(f"in brackets: 95 % intervals of a bootstrap over {', '.join(sorted(resampled))}")
    if "pseudo_perplexity" in found:
        tokens = found["pseudo_perplexity_tokens"]
        console.print(f"pseudo-perplexity {interval(found, 'pseudo_perplexity')}, of {tokens:,} tokens")
    if "loss_by_position" in found["files"][-1]:
        positions = found["files"][-1]["loss_by_position"]
        table = Table("tokens before", *(str(row["from"]) for row in positions), box=None)
        table.add_row("loss (nats)", *(number(row["loss"]) for row in positions))
        console.print(table)
    if "diversity" in found:
        names = list(found["diversity"]["samples"])
        table = Table("", *(name.replace("_", " ") for name in names), box=None)
        for key, title in (("samples", "samples"), ("real_texts", "real texts")):
            table.add_row(title, *(number(found["diversity"][key][name]) for name in names))
        console.print(table)
    for row in found.get("copied", []):
        console.print(
            f"{row['texts']}: {row['copied']:.1%} of the bytes are in passages of {row['least_bytes']} bytes or more "
            f"that are in the training data ({row['training_bytes']:,} bytes); longest {row['longest_bytes']:,} bytes"
            + (f": {row['longest'][:200]!r}" if row["longest"] else "")
        )


def show_choices(console: Console, found: dict[str, Any]) -> None:
    table = Table("file", "questions", "shots", "accuracy", "by likelihood per character", "guessing", box=None)
    counts = f"{found['questions']:,}", str(found["shots"])
    values = interval(found, "accuracy"), interval(found, "accuracy_normalized"), number(found["chance"])
    table.add_row(found["file"], *counts, *values)
    console.print(table)


def show_comparison(console: Console, found: dict[str, Any]) -> None:
    for pair in found["pairs"]:
        low, high = pair["interval"]
        console.print(f"A: {pair['a']}\nB: {pair['b']}")
        console.print(
            f"{pair['score']} {number(pair['a_score'])} and {number(pair['b_score'])}: difference "
            f"{pair['difference']:+.4g} (95 %: {low:+.4g} to {high:+.4g})"
        )
        console.print(
            f"{pair['wins']:,} wins, {pair['losses']:,} losses of B in {pair['rows']:,} rows, "
            f"{pair['test']} p = {pair['p_value']:.2g}"
        )
        console.print(f"{pair['verdict']}\n")
    names = [name for name in found["models"][0] if name != "model"]
    table = Table("model", *(name.replace("_", " ") for name in names), box=None)
    for row in found["models"]:
        table.add_row(row["model"], *(f"{row[n]:,}" if n == "parameters" else number(row[n]) for n in names))
    console.print(table)


def show_drift(console: Console, found: dict[str, Any]) -> None:
    sides = (found["reference"], found["new"])
    console.print(
        "reference: {file}, {texts:,} texts; ".format(**sides[0]) + "new: {file}, {texts:,}".format(**sides[1])
    )
    table = Table("about", "what", "reference", "new", "statistic", "threshold", "adjusted p", "", box=None)
    for row in found["checks"]:
        means = number(row.get("reference")), number(row.get("new"))
        values = number(row["statistic"]), number(row["threshold"]), f"{row['adjusted_p_value']:.3g}"
        table.add_row(row["about"], row["name"], *means, *values, "drift" if row["drift"] else "")
    console.print(table)
    if found["domain_classifier_auc"] is not None:
        console.print(f"a linear classifier tells new texts apart with AUC {found['domain_classifier_auc']:.3f}")
    console.print("drift" if found["drift"] else "no drift shown")


def show_speed(console: Console, found: dict[str, Any]) -> None:
    shortest, longest = found["prompt_words"]
    console.print(f"{found['target']}: prompts of {shortest} to {longest} words, {found['new_tokens']} new tokens")
    table = Table(
        "requests", "requests/s", "tokens/s", "ms to first token", "between tokens", "to last token", box=None
    )
    for loop in found["loops"]:
        closed = loop["loop"] == "closed"
        title = f"{loop['concurrency']} at once" if closed else f"{loop['arrivals_per_second']:.3g} arrive a second"
        times = [
            " / ".join(number(value) for value in (loop[f"milliseconds_{name}"] or {}).values())
            for name in ("to_first_token", "between_tokens", "to_last_token")
        ]
        table.add_row(title, number(loop["requests_per_second"]), number(loop["tokens_per_second"]), *times)
    console.print(table)
    console.print("times: P50 / P95 / P99; waiting for a free slot counts")
    if short := sum(loop["short_answers"] for loop in found["loops"]):
        console.print(f"{short} answers have fewer than {found['new_tokens']} tokens, so that less work was measured")
    for name in ("peak_memory_mb", "peak_gpu_memory_mb"):
        if name in found:
            console.print(f"{name.replace('_', ' ').replace(' mb', '')}: {found[name]:,.0f} MB")
