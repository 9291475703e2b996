"""Seeded damage to a file of a run: other types in JSON, JSON lines, YAML and safetensors headers, garbage, no file."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Damage = Callable[[Path, random.Random], None]
VALUES = [
    *(None, True, False, -1, 0, 7, 10**30, 1e308, -0.5, "", "text", "12", "\ud800", "\x00", "../../etc/passwd"),
    *([], [1], [None], [[]], [["a", 1]], {}, {"a": 1}, {"a": {"a": []}}, [[[[[[]]]]]]),
]
# Files that hold the state of a run, as patterns below its directory.
STATE = ["*.json", "*.jsonl", "*.yaml", "*.txt", "tables/*", "teacher/**/*", "model/*", "tokenizer.model", ".lock"]


def mutate(run: Path, rng: random.Random) -> str:
    """Damage one file of the run at `run`; returns the file and the kind of damage."""
    kind = rng.choice([name for name, weight in WEIGHTS.items() for _ in range(weight)])
    files = sorted(
        {path for pattern in STATE for path in run.glob(pattern) if path.is_file() and not path.is_symlink()}
    )
    if kind in CONTENT:
        files = [path for path in files if path.suffix in (".json", ".jsonl", ".yaml", ".safetensors")]
    path = rng.choice(files)
    DAMAGES[kind](path, rng)
    return f"{path.relative_to(run)}: {kind}"


def change_content(path: Path, rng: random.Random, edit: Callable[[Any, random.Random], Any]) -> None:
    """Apply `edit` to the parsed content of a file."""
    data = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = data.decode().splitlines()
        if lines:
            number = rng.randrange(len(lines))
            lines[number] = json.dumps(edit(json.loads(lines[number]), rng))
        path.write_text("".join(line + "\n" for line in lines))
    elif path.suffix == ".safetensors":
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(edit(json.loads(data[8 : 8 + size]), rng)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    elif path.suffix == ".yaml":
        text = yaml.safe_dump(edit(yaml.safe_load(data), rng), allow_unicode=False)
        path.write_text(text, errors="replace")
    else:
        path.write_text(json.dumps(edit(json.loads(data), rng)))


def other_value(tree: Any, rng: random.Random) -> Any:
    """Replace a random node of the tree, or the tree, by a value of VALUES."""
    return _edit(tree, rng, lambda parent, key: parent.__setitem__(key, rng.choice(VALUES)), rng.choice(VALUES))


def remove_node(tree: Any, rng: random.Random) -> Any:
    """Remove a random node of the tree."""
    return _edit(tree, rng, lambda parent, key: parent.pop(key), [])


def add_node(tree: Any, rng: random.Random) -> Any:
    """Add an entry to a random list or object of the tree."""

    def add(parent: Any, key: Any) -> None:
        value = rng.choice(VALUES)
        parent.update({"added": value}) if isinstance(parent, dict) else parent.append(value)

    return _edit(tree, rng, add, [tree])


def _edit(tree: Any, rng: random.Random, change: Callable[[Any, Any], object], instead: Any) -> Any:
    nodes = _nodes(tree)
    if not nodes or rng.random() < 0.1:
        return instead
    # A node near the root as often as one of the many leaves.
    depth = rng.choice(sorted({depth for depth, _, _ in nodes}))
    _, parent, key = rng.choice([node for node in nodes if node[0] == depth])
    change(parent, key)
    return tree


def _nodes(tree: Any, depth: int = 0) -> list[tuple[int, Any, Any]]:
    """(depth, parent, key) of every node below the root; only the first 50 of a list."""
    keys = list(tree)[:50] if isinstance(tree, dict) else list(range(len(tree)))[:50] if isinstance(tree, list) else []
    return [node for key in keys for node in [(depth, tree, key), *_nodes(tree[key], depth + 1)]]


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(max(path.stat().st_size, 1)))


def garbage(path: Path, rng: random.Random) -> None:
    """Random bytes, text that is not UTF-8, deep nesting, numbers that JSON does not have."""
    choices = [rng.randbytes(rng.choice([1, 100, 5000])), b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' * 50_000]
    choices += [b'{"a": NaN}\n', b'{"step": 1e999}\n', b"- &a [*a]\n", b"a: 2001-13-45\n", b"null\n", b"{}\n", b"\n"]
    path.write_bytes(rng.choice(choices))


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 20])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def replace(path: Path, rng: random.Random) -> None:
    """A directory, a FIFO, a link to a device that never ends, a link to nothing, or no file in place of the file."""
    path.unlink()
    kind = rng.choice(["directory", "fifo", "device", "dangling", "nothing"])
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("device", "dangling"):
        path.symlink_to("/dev/zero" if kind == "device" else "/nowhere/at/all")


CONTENT = ("another value", "an entry removed", "an entry added")
DAMAGES: dict[str, Damage] = {
    "another value": lambda path, rng: change_content(path, rng, other_value),
    "an entry removed": lambda path, rng: change_content(path, rng, remove_node),
    "an entry added": lambda path, rng: change_content(path, rng, add_node),
    "truncated": truncate,
    "emptied": lambda path, rng: path.write_bytes(b""),
    "zeroed": lambda path, rng: path.write_bytes(bytes(path.stat().st_size)),
    "garbage": garbage,
    "bits flipped": flip,
    "replaced": replace,
}
WEIGHTS = {
    **{"another value": 8, "an entry removed": 2, "an entry added": 2, "truncated": 1, "emptied": 1, "zeroed": 1},
    **{"garbage": 3, "bits flipped": 2, "replaced": 3},
}
