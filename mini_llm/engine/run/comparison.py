"""Compare the configuration, the inputs and the environment of a launch with those that a run was started with."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mini_llm.engine.run.inputs import PATH_KEY, Input, by_content, path_values

# Entries of environment.json on which the last bits of the numbers depend.
ROUNDING = ("code", "commit", "cpu", "cpu_capability", "kernels", "gpus")
ROUNDING_PACKAGES = ("torch", "numpy", "accelerate", "deepspeed")
WORDS = {"code": "other code", "cpu": "another processor", "kernels": "other CPU kernels", "gpus": "other GPUs"}


@dataclass
class Changes:
    """harmful: keys of the configuration that may not change. notes: what a user should know of the other changes.

    changed: paths whose data have another content, with both hashes.
    """

    harmful: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: list[tuple[str, str, str]] = field(default_factory=list)


def compare(
    old: Mapping[str, Any],
    used: Mapping[str, Any],
    new: Mapping[str, Any],
    allowed: Iterable[str],
    before: Mapping[str, Input],
    now: Mapping[str, Input],
) -> Changes:
    """Compare flattened configurations, and `before` and `now`, what their paths hold.

    old: as requested when the run began; used: with its choices filled in; new: of this launch. A path to other places
    with the same content is no change.
    """
    found = Changes()
    for key in dict.fromkeys([*old, *new]):
        value = new.get(key)
        if key == "run" or value in (old.get(key), used.get(key)):
            continue  # a directory may be renamed or copied
        if old and is_newer(key, old):
            found.notes.append(f"{key} is a setting of a newer version: {show(key, new)}")
            continue
        known = key in old and bool(PATH_KEY.search(key)) and value is not None
        if known and by_content(old[key], before) == by_content(value, now):
            if under(key, allowed):
                continue
            found.notes.append(f"{key}: {show(key, old)} is now {show(key, new)}, with the same content")
        elif under(key, allowed):
            found.notes.append(f"{key} changed: {show(key, old)} -> {show(key, new)}")
        else:
            found.harmful.append(key)
    for path in path_values(new):
        if path in before and path in now and before[path].sha256 != now[path].sha256:
            if now[path].kind == "data":
                found.changed.append((path, before[path].sha256, now[path].sha256))
            else:
                found.notes.append(f"{path} has changed; this run goes on from what it read there when it began")
    return found


def is_newer(key: str, old: Mapping[str, Any]) -> bool:
    """Whether the setting `key` did not exist when the configuration `old` was written: neither it nor a section that
    was null there, and it is not an entry of a list that has become longer."""
    parts = key.split(".")
    known = any(".".join(parts[:end]) in old for end in range(1, len(parts) + 1))
    return not known and not any(part.isdigit() for part in parts)


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return {what: (before, now)} for what can change the last bits of a resumed run; only what both know counts."""
    changes = {
        key: (before[key], now[key])
        for key in ROUNDING
        if None not in (before.get(key), now.get(key)) and before[key] != now[key]
    }
    if "code" in before and "code" in now and "code" not in changes:
        changes.pop("commit", None)  # of documentation or tests
    one, two = before.get("packages"), now.get("packages")
    if isinstance(one, dict) and isinstance(two, dict):
        for name in ROUNDING_PACKAGES:
            if name in one and name in two and one[name] != two[name]:
                changes[name] = one[name], two[name]
    return changes


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """One sentence for the user."""
    parts = [f"{WORDS.get(key, key)} ({old} -> {new})" for key, (old, new) in changes.items()]
    return (
        f"resumes with {', '.join(parts)}: from here on it may differ in the last bits from a run that was not "
        "interrupted (environment.json keeps a record)"
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree by dotted key; sections in lists have their index as key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def under(key: str, sections: Iterable[str]) -> bool:
    """Whether `key` is one of `sections` or inside one."""
    return any(key == section or key.startswith(section + ".") for section in sections)


def show(key: str, flat: Mapping[str, Any]) -> str:
    """A value as text."""
    return json.dumps(flat[key], ensure_ascii=False) if key in flat else "(not set)"
