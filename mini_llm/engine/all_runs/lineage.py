"""`python -m mini_llm runs lineage RUN`: tokenizer -> token store -> model -> classifier -> export, by content."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from mini_llm.engine.all_runs.facts import all_runs, data_sources, read_config
from mini_llm.engine.all_runs.verification import locate
from mini_llm.engine.run.files import read_json
from mini_llm.engine.run.inputs import FILE as INPUTS
from mini_llm.engine.run.inputs import Input, describe_inputs
from mini_llm.engine.run.jsonl import read_rows
from mini_llm.engine.run.state import read_state

EXPORTS = "*.gguf"
_DIGITS = 12  # of a hash, in the tree
# Keys of a configuration that name the run or model directory from which a run was made.
_PARENTS = ("model", "init", "tokenizer")


@dataclass
class Node:
    """One thing that was made. parents: paths of what it was made from, the main one first.

    changed: parents whose content is no longer what this was made from.
    """

    path: Path
    kind: str  # tokenizer, tokens, model, classifier, export or outside
    sha256: str = ""
    data: list[str] = field(default_factory=list)
    parents: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)
    tokenizer_sha256: str = ""  # of the tokenizer of a token store

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": shortest(self.path),
            "kind": self.kind,
            "sha256": self.sha256,
            "data": self.data,
            "parents": [shortest(path) for path in self.parents],
            "changed": [shortest(path) for path in self.changed],
        }


def graph(runs: list[Path]) -> dict[Path, Node]:
    """All nodes of a folder of runs by resolved path: the runs, their token stores, and their exports."""
    nodes: dict[Path, Node] = {}
    for run in runs:
        for node in _nodes(run):
            nodes.setdefault(node.path.resolve(), node)
    tokenizers = {node.sha256: node.path for node in nodes.values() if node.kind == "tokenizer" and node.sha256}
    for node in list(nodes.values()):
        # A run that trained or found its tokenizer itself does not name it in its configuration.
        if node.kind == "tokens" and not node.parents and node.tokenizer_sha256 in tokenizers:
            node.parents = [tokenizers[node.tokenizer_sha256]]
        for parent in node.parents:
            nodes.setdefault(parent.resolve(), Node(parent, "outside"))
    return nodes


def _nodes(run: Path) -> Iterator[Node]:
    config = read_config(run)
    artifacts = read_rows(run / "artifacts.jsonl")
    made = {str(record.get("kind")): record for record in artifacts}
    kind = "tokenizer" if "tokenizer" in made else "classifier" if isinstance(config.get("data"), dict) else "model"
    own = Node(run, kind, str((made.get("tokenizer") or made.get("model") or {}).get("sha256") or ""))
    places = [locate(run, value) for key in _PARENTS if isinstance(value := config.get(key), str)]
    # An architecture such as "gpt" is the value of `model`, too.
    parents = [_owner(place) for place in places if place is not None and place.is_dir()]
    if "dataset" in made:
        recorded = str(made["dataset"].get("path"))
        store = locate(run, recorded) or Path(recorded)
        manifest = read_json(store)
        fingerprint = str(manifest.get("fingerprint") or "") if isinstance(manifest, dict) else ""
        tokens = Node(store.parent, "tokens", fingerprint, data_sources(config))
        files = made.get("model", {}).get("files")
        copied = files.get("tokenizer.model") if isinstance(files, dict) else None
        tokens.tokenizer_sha256 = str(copied.get("sha256") or "") if isinstance(copied, dict) else ""
        tokens.parents = [path for path in parents if (path / "tokenizer.model").is_file()][-1:]
        yield tokens
        own.parents = [*(path for path in parents if path not in tokens.parents), store.parent]
    else:
        own.parents, own.data = parents, data_sources(config)
    own.changed = _changed(run, config)
    yield own
    for export in sorted(run.glob(EXPORTS)):
        yield Node(export, "export", parents=[run])


def _owner(place: Path) -> Path:
    """The run of a model directory, where it is one."""
    return place.parent if place.name == "model" and (place.parent / "config.yaml").is_file() else place


def _changed(run: Path, config: dict[str, Any]) -> list[Path]:
    """Model directories among the inputs of a run whose content has changed since."""
    before = read_state(run / INPUTS, dict[str, Input]) or {}
    found = []
    for key in _PARENTS:
        value = config.get(key)
        place = locate(run, value) if isinstance(value, str) and value in before else None
        if place is not None:
            now = describe_inputs({key: str(place)}).get(str(place))
            if now is not None and now.sha256 != before[str(value)].sha256:
                found.append(_owner(place))
    return found


def children(run: Path) -> list[Path]:
    """The runs beside `run` that were made from it."""
    nodes = graph(all_runs(run.resolve().parent))
    return [node.path for node in _descendants(nodes, run.resolve()) if node.kind in ("model", "classifier")]


def _descendants(nodes: dict[Path, Node], path: Path) -> list[Node]:
    found: dict[Path, Node] = {}
    ahead = [path]
    while ahead:
        here = ahead.pop()
        for place, node in nodes.items():
            if place not in found and here in (parent.resolve() for parent in node.parents):
                found[place] = node
                ahead.append(place)
    return list(found.values())


def chain(nodes: dict[Path, Node], path: Path) -> list[Node]:
    """`path` and what it was made from, the main parent of each, oldest first."""
    found: dict[Path, Node] = {}
    here: Path | None = path.resolve()
    while here is not None and here in nodes and here not in found:
        found[here] = nodes[here]
        parents = nodes[here].parents
        here = parents[0].resolve() if parents else None
    return list(found.values())[::-1]


def print_lineage(run: Path, as_json: bool, console: Console) -> None:
    """Print what `run` was made from and what was made from it, as a tree or as JSON."""
    nodes = graph([*dict.fromkeys([run, *all_runs(run.resolve().parent)])])
    before, after = chain(nodes, run), _descendants(nodes, run.resolve())
    if as_json:
        print(json.dumps({"run": str(run), "nodes": [node.as_dict() for node in [*before, *after]]}, indent=2))
        return
    tree = branch = Tree(_label(before[0], run), guide_style="dim")
    for node in before[1:]:
        branch = branch.add(_label(node, run))
    _grow(branch, nodes, run.resolve(), {run.resolve()})
    console.print(tree)


def shortest(path: Path) -> str:
    """The path, or the path from the current directory if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


def _grow(branch: Tree, nodes: dict[Path, Node], path: Path, shown: set[Path]) -> None:
    for place, node in nodes.items():
        if place not in shown and path in (parent.resolve() for parent in node.parents):
            shown.add(place)
            _grow(branch.add(_label(node, path)), nodes, place, shown)


def _label(node: Node, run: Path) -> Text:
    this = node.path.resolve() == run.resolve()
    text = Text.assemble((shortest(node.path), "bold reverse" if this else "bold"), f"  {node.kind}")
    if not node.path.exists():
        text.append("  (missing)", "yellow")
    if node.sha256:
        text.append(f"  sha256 {node.sha256[:_DIGITS]}", "dim")
    if node.data:
        text.append(f"  from {', '.join(node.data)}")
    others = [path for path in node.parents[1:] if path != node.path]
    if others:
        text.append(f"  and from {', '.join(map(shortest, others))}")
    if node.changed:
        text.append(f"  {', '.join(map(shortest, node.changed))} has changed since", "yellow")
    return text
