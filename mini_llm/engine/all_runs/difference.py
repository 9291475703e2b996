"""`python -m mini_llm runs diff A B`: what differs between two runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mini_llm.engine.all_runs.facts import data_sources, elapsed, read_config
from mini_llm.engine.all_runs.table import print_table
from mini_llm.engine.report.record import Run
from mini_llm.engine.run.comparison import flatten, show
from mini_llm.engine.run.inputs import FILE as INPUTS
from mini_llm.engine.run.inputs import PATH_KEY, Input, by_content
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.run.key_names import translate
from mini_llm.engine.run.state import read_state

TITLES = {
    "configuration": "Configuration (as used)",
    "data": "Data",
    "code": "Code",
    "environment": "Environment",
    "curves": "Ends of the curves",
}
MISSING = "(not set)"
_CODE = ("code", "commit")
# The name of a run, and how it is tracked, say nothing about what it learned.
_NO_DIFFERENCE = ("run", "tracking")
_HISTORY = ("changes",)

Differences = dict[str, dict[str, tuple[Any, Any]]]


def differences(a: Path, b: Path) -> Differences:
    """{section of TITLES: {what: (in a, in b)}} with what differs; a section without differences is empty."""
    one, two = Run(a), Run(b)
    return {
        "configuration": _differ(configuration(a), configuration(b)),
        "data": _differ(_data(a), _data(b)),
        "code": _differ(
            *({key: run.environment[key] for key in _CODE if run.environment.get(key)} for run in (one, two))
        ),
        "environment": _differ(_environment(one), _environment(two)),
        "curves": _differ(curve_ends(one), curve_ends(two)),
    }


def configuration(path: Path) -> dict[str, Any]:
    """The resolved configuration by dotted key, under today's names."""
    flat = flatten(translate(read_config(path)))
    return {key: value for key, value in flat.items() if key.partition(".")[0] not in _NO_DIFFERENCE}


def chosen_keys(path: Path) -> set[str]:
    """Keys that the run has chosen itself: their resolved value is not the requested one."""
    asked = flatten(translate(read_config(path, "requested.yaml")))
    return {key for key, value in configuration(path).items() if key in asked and asked[key] != value}


def curve_ends(run: Run) -> dict[str, float]:
    """The last value of every curve, the step it ends at and the seconds it took."""
    ends: dict[str, float] = {}
    for row in run.rows:
        numbers = {key: value for key, value in row.items() if isinstance(value, (int, float)) and value is not True}
        ends.update({key: value for key, value in numbers.items() if key not in ("elapsed", "step", "count")})
        ends["step"] = max(ends.get("step", 0), row.get("step", 0))
    seconds = elapsed(run.rows)
    return ends | ({} if seconds is None else {"elapsed": seconds})


def _data(path: Path) -> dict[str, Any]:
    """The content of the data: hashes of what the paths hold, fingerprints of token stores."""
    flat = flatten(read_config(path))
    inputs = read_state(path / INPUTS, dict[str, Input]) or {}
    found = {
        key: by_content(value, inputs)
        for key, value in flat.items()
        if PATH_KEY.search(key) and by_content(value, inputs) != value
    }
    for record in read_rows(path / "artifacts.jsonl"):
        about = record.get("metadata")
        if record.get("kind") == "dataset" and isinstance(about, dict):
            found |= {key: about[key] for key in ("fingerprint", "tokens") if key in about}
    return found or {"sources": data_sources(read_config(path))}


def _environment(run: Run) -> dict[str, Any]:
    return flatten({key: value for key, value in run.environment.items() if key not in (*_CODE, *_HISTORY)})


def _differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key, MISSING), b.get(key, MISSING)) for key in keys if a.get(key) != b.get(key)}


def print_differences(a: Path, b: Path, as_json: bool, console: Console) -> None:
    """Print `differences` as one table per section, or as JSON."""
    found = differences(a, b)
    if as_json:
        print(json.dumps({"a": str(a), "b": str(b), **found}, indent=2, default=str))
        return
    chosen = chosen_keys(a) | chosen_keys(b)
    for section, changes in found.items():
        rows = []
        for key, (one, two) in changes.items():
            mark = "chosen by the run" if section == "configuration" and key in chosen else ""
            ratio = _ratio(one, two) if section == "curves" else mark
            rows.append([key, *(_text(value, section) for value in (one, two)), ratio])
        columns = ["", a.name, b.name, ""]
        print_table(TITLES[section], columns, rows, console)
    same = [TITLES[section].lower() for section, changes in found.items() if not changes]
    if same:
        console.print(Text(f"\nThe same in both: {', '.join(same)}", style="dim"))


def _ratio(one: Any, two: Any) -> str:
    if MISSING in (one, two) or not one:
        return ""
    return f"{100 * (two - one) / abs(one):+.1f} %"


def _text(value: Any, section: str) -> str:
    if value == MISSING:
        return MISSING
    if section == "curves":
        return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
    if isinstance(value, str):
        return value if not value.startswith("sha256:") else value[:19]
    return show("", {"": value})
