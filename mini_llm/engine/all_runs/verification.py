"""`python -m mini_llm runs verify`: compare the files of runs with the hashes recorded when they were written."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mini_llm.engine.errors import CheckpointError
from mini_llm.engine.run.files import read_json, sha256
from mini_llm.engine.run.jsonl import read_rows


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: `damage` is "" where every hash matches. gone: a token store, which is rebuilt."""

    path: str
    files: int
    damage: str = ""
    gone: bool = False


def verify_run(run: Path) -> Iterator[Finding]:
    """Yield a finding for each checkpoint, model, tokenizer and token store that the run recorded."""
    from mini_llm.engine.checkpoint.format import find_damage

    for directory in sorted((run / "checkpoints").glob("*-*")):
        if directory.name.startswith(("step-", "best-")) and directory.is_dir():
            damage = find_damage(directory)
            # A live run removes old checkpoints.
            if damage is None or directory.is_dir():
                files = sum(path.is_file() for path in directory.rglob("*")) - 1
                yield Finding(str(directory), files, damage or "")
    # A later record of the same files replaces an earlier one.
    records = {(row.get("kind"), row.get("path")): row for row in read_rows(run / "artifacts.jsonl")}
    for record in records.values():
        yield from _verify_record(run, record)


def _verify_record(run: Path, record: dict[str, Any]) -> Iterator[Finding]:
    """The files of one row of artifacts.jsonl, and the shards behind a token store's manifest."""
    name, files = record.get("path"), record.get("files")
    if not isinstance(name, str) or not isinstance(files, dict):
        yield Finding(str(run / "artifacts.jsonl"), 0, "a damaged record")
        return
    place = locate(run, name)
    if place is None:
        gone = record.get("kind") == "dataset"
        yield Finding(name, 0, "" if gone else "is missing", gone)
        return
    folder = place if place.is_dir() else place.parent
    damage = ""
    for file, entry in files.items():
        damage = damage or _file_damage(folder / file, entry)
    yield Finding(str(place), len(files), damage)
    if record.get("kind") == "dataset" and not damage:
        yield _verify_store(place.parent)


def _verify_store(store: Path) -> Finding:
    manifest = read_json(store / "manifest.json")
    shards = manifest.get("shards") if isinstance(manifest, dict) else None
    if not isinstance(shards, list):
        return Finding(str(store), 0, "manifest.json lists no shards")
    damage, files = "", 0
    for shard in shards:
        for kind in ("tokens", "documents"):
            file = store / str(shard.get(f"{kind}_file"))
            damage = damage or _file_damage(file, {"sha256": shard.get(f"{kind}_sha256")})
            files += 1
    return Finding(str(store), files, damage)


def _file_damage(path: Path, entry: Any) -> str:
    """What is wrong with one file, given its recorded {"sha256", "size"}."""
    if not isinstance(entry, dict):
        return f"{path.name} has a damaged record"
    try:
        if isinstance(entry.get("size"), int) and path.stat().st_size != entry["size"]:
            return f"{path.name} has {path.stat().st_size:,} bytes, expected {entry['size']:,}"
        return "" if sha256(path) == entry.get("sha256") else f"{path.name} has changed (sha256 differs)"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name}: {error.strerror}"


def locate(run: Path, name: str) -> Path | None:
    """A path as a run recorded it: inside the run, from the current directory, or beside the folder of runs."""
    places = (run / name, Path(name), run.resolve().parent.parent / name)
    return next((place for place in places if place.exists()), None)


def print_verification(runs: list[Path], as_json: bool, console: Console) -> None:
    """Print a line for each thing that was checked. Raises CheckpointError when one of them is damaged."""
    found: dict[str, list[Finding]] = {}
    for run in runs:
        found[str(run)] = []
        for finding in verify_run(run):
            found[str(run)].append(finding)
            if not as_json:
                console.print(_line(finding), soft_wrap=True)
        if not found[str(run)] and not as_json:
            console.print(Text.assemble(("nothing", "yellow"), f"  {run}: no checkpoint or model yet"), soft_wrap=True)
    if as_json:
        print(json.dumps({run: [asdict(finding) for finding in each] for run, each in found.items()}, indent=2))
    damaged = [finding for each in found.values() for finding in each if finding.damage]
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {sum(map(len, found.values()))} are damaged, the first is {damaged[0].path}: "
            f"{damaged[0].damage}. A resumed run uses the newest intact checkpoint; a finished model has to be "
            "restored from a copy or trained again"
        )


def _line(finding: Finding) -> Text:
    if finding.gone:
        return Text.assemble(("gone   ", "yellow"), f"  {finding.path}: a run that needs this token store rebuilds it")
    mark = ("damaged", "bold red") if finding.damage else ("ok     ", "green")
    count = f"{finding.files} {'file' if finding.files == 1 else 'files'}"
    return Text.assemble(mark, f"  {finding.path}: {finding.damage or count}")
