"""Every setting with its type, default and meaning, from the configuration classes: for --help and docs/settings.md."""

import json
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from mini_llm.engine.config import Config, Setting, list_settings

# Sections that a reader looks for first; others follow in the order of the class.
ORDER = ("", "sizes.", "optim.", "schedule.", "runtime.", "data.", "corpus.", "corpus.sources.N.", "pairs.")
KEY_WIDTH, DEFAULT_WIDTH = 27, 10
INTRODUCTION = """# Settings

Every setting of every stage. This page is generated: `python -m mini_llm settings > docs/settings.md`.

A setting is given on the command line as `key=value`, or in a YAML file whose path is the first argument; the command
line wins. The type of the setting decides how a value is read: a text takes the characters as they are (`012`, `yes`,
`#1`), others are `true`, `1e-3`, `[0.9, 0.95]`. `null` stands for no value where the default may be null; write
`"null"` for that text. `N` in a key is the index of a list entry, from 0. The sweeps of W&B may write `--key=value`.
`python -m STAGE --help` prints the same list. `config.yaml` in a run directory holds the values that a run used,
with every `null` that was chosen by rule filled in; `requested.yaml` holds what was asked for.

```
python -m pretrain configs/pretrain/gpt.yaml optim.lr=1e-3 sizes.hidden_size=384
```
"""


def sections(cls: type[Config]) -> dict[str, list[Setting]]:
    """The settings of `cls` by section ("" or a prefix such as "optim.")."""
    found: dict[str, list[Setting]] = {}
    for setting in list_settings(cls):
        found.setdefault(setting.section, []).append(setting)
    return dict(sorted(found.items(), key=lambda item: ORDER.index(item[0]) if item[0] in ORDER else len(ORDER)))


def section_meaning(cls: type[BaseModel], section: str) -> str:
    """The first paragraph of the docstring of the class that holds `section`."""
    for name in section.rstrip(".").split("."):
        if name not in ("", "N"):
            cls = next(_classes(cls.model_fields[name].annotation))
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def show_default(setting: Setting) -> str:
    """The default as it would be typed; "" for a required key."""
    if setting.field.is_required():
        return ""
    value = setting.default
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return ", ".join(entry.path for entry in value)
    return value if isinstance(value, str) else json.dumps(value)


def choices(annotation: Any) -> list[str]:
    """The values of a Literal (also inside a union), as they would be typed; true and false for a bool."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [value if isinstance(value, str) else json.dumps(value) for value in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [choices(part) for part in get_args(annotation) if part is not type(None)]
        return [choice for part in parts for choice in part] if all(parts) else []
    return []


def show_type(setting: Setting) -> str:
    """The type of a setting, or its choices, and its range: "int >= 1", "auto, adamw or muon"."""
    annotation = setting.field.annotation
    if found := choices(annotation):
        return " or ".join(filter(None, (", ".join(found[:-1]), found[-1])))
    if get_origin(annotation) is tuple:
        return f"{len(get_args(annotation))} {get_args(annotation)[0].__name__}s"
    if get_origin(annotation) is list:
        inner = get_args(annotation)[0]
        return "list of sources" if issubclass(inner, BaseModel) else f"list of {inner.__name__}"
    parts = [part for part in get_args(annotation) if isinstance(part, type) and part is not type(None)]
    # None | Annotated[str, ...] nests the type one level deeper.
    named = [annotation] if isinstance(annotation, type) else parts or [str]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {_show_limit(getattr(rule, name))}"
        for rule in setting.field.metadata
        for name, sign in signs.items()
        if hasattr(rule, name)
    ]
    return " ".join(filter(None, (named[0].__name__, ", ".join(limits))))


def _show_limit(limit: float) -> str:
    return "2**64" if limit == 2**64 else f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


def print_settings(cls: type[Config]) -> None:
    """Print all settings of `cls` by section: key, default, meaning and choices. Fits 80 columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print("Settings, as key=value: key, default, meaning", style="bold")
    for section, settings in sections(cls).items():
        if section:
            console.print(f"\n{section}*: {section_meaning(cls, section)}", style="bold", markup=False)
        table = Table.grid(padding=(0, 1))
        table.add_column(width=max(KEY_WIDTH, *(len(setting.key) for setting in settings)), no_wrap=True)
        table.add_column(width=DEFAULT_WIDTH, overflow="fold")
        table.add_column()
        for setting in settings:
            given = choices(setting.field.annotation)
            boolean = setting.field.annotation is bool
            meaning = Text(setting.field.description or "")
            if given and not boolean:
                meaning.append(f" [{'|'.join(given)}]", style="dim")
            table.add_row(Text(setting.key, style="cyan"), Text(show_default(setting)), meaning)
        console.print(table)
    console.print()


def settings_page(stages: Mapping[str, type[Config]]) -> str:
    """docs/settings.md: a chapter per stage, a table per section."""
    lines = [INTRODUCTION]
    for stage, cls in stages.items():
        lines += [f"## {stage}", ""]
        for section, settings in sections(cls).items():
            if section:
                lines += [f"### {stage}: {section}*", "", section_meaning(cls, section), ""]
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
            for setting in settings:
                default = show_default(setting)
                cells = (
                    f"`{setting.key}`",
                    show_type(setting),
                    f"`{default}`" if default else "",
                    setting.field.description or "",
                )
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def complete_setting(cls: type[Config], incomplete: str) -> list[str]:
    """Completions of a `key=value` argument: keys that begin with it, or the values of its key."""
    key, sign, value = incomplete.partition("=")
    settings = {setting.key: setting for setting in list_settings(cls)}
    if sign:
        found = choices(settings[key].field.annotation) if key in settings else []
        return [f"{key}={choice}" for choice in found if choice.startswith(value)]
    if "." not in incomplete:
        # Sections first, so that a list stays short: optim. and not its keys.
        heads = dict.fromkeys(f"{name.split('.')[0]}." if "." in name else f"{name}=" for name in settings)
        matching = [head for head in heads if head.startswith(incomplete)]
        if not (len(matching) == 1 and matching[0].endswith(".")):
            return matching
        incomplete = matching[0]
    return [f"{key.replace('.N.', '.0.')}=" for key in settings if key.replace(".N.", ".0.").startswith(incomplete)]
