"""Configuration: defaults, then a YAML file, then `key.sub=value`; validated by pydantic.

config = load_config(PretrainConfig, "configs/pretrain/gpt.yaml", ["optim.lr=1e-3"])

A value is typed by its field: a text field takes the characters that were typed (012, yes, 2026-11-29, #1).

Every field has a description: help texts, docs/settings.md and completion are made from them. An unknown key is an
error that suggests the right one (key_names.py has what other projects call it).
"""

import difflib
import inspect
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.key_names import COMMON_NAMES, RENAMED_KEYS, RENAMED_VALUES


class Config(BaseModel):
    """Base of every configuration class: unknown keys are errors, assignments are validated."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, validate_default=True, coerce_numbers_to_str=True
    )


C = TypeVar("C", bound=Config)
# Letters, digits, '.', '_', '+' and '-' only: the name cannot lead out of runs/.
RunName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]


@dataclass(frozen=True)
class Setting:
    """One key of a configuration class. `section` is "" or a prefix such as "optim."; N in a key is a list index."""

    section: str
    name: str
    field: FieldInfo
    default: Any

    @property
    def key(self) -> str:
        return self.section + self.name


def list_settings(cls: type[BaseModel]) -> list[Setting]:
    """Every key of `cls`, nested ones too; the fields that a class adds come before the inherited ones."""
    return list(_settings(cls, None, "", set()))


def _settings(cls: type[BaseModel], defaults: Any, section: str, seen: set[type]) -> Iterator[Setting]:
    own = inspect.get_annotations(cls)
    nested = []
    for name in dict.fromkeys([*(name for name in own if name in cls.model_fields), *cls.model_fields]):
        field = cls.model_fields[name]
        default = getattr(defaults, name, None) if defaults else field.get_default(call_default_factory=True)
        inner = _config_class(field.annotation)
        in_list = get_origin(field.annotation) is list
        if inner is None or in_list:
            yield Setting(section, name, field, default)
        if inner is not None and not (in_list and inner in seen):
            seen.add(inner)
            nested.append(
                (inner, None if in_list else default, f"{section}{name}.N." if in_list else f"{section}{name}.")
            )
    for inner, default, prefix in nested:
        yield from _settings(inner, default, prefix, seen)


def flag_overrides(flags: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(key, value) overrides for the flags that were given (are not None)."""
    return [(key, value) for key, value in flags.items() if value is not None]


def split_arguments(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Split positional arguments into an optional YAML path (first place) and `key.sub=value` overrides.

    Raises ConfigError for anything else.
    """
    path = None
    if arguments and "=" not in arguments[0] and arguments[0].endswith((".yaml", ".yml")):
        path, arguments = Path(arguments[0]), arguments[1:]
    for argument in arguments:
        if "=" not in argument:
            raise ConfigError(
                f"'{argument}' is neither a .yaml file nor key=value. "
                "Arguments are [CONFIG.yaml] [key.sub=value ...], for example optim.lr=1e-3"
            )
    return path, arguments


def load_config(cls: type[C], path: Path | str | None = None, overrides: Sequence[str | tuple[str, Any]] = ()) -> C:
    """Build `cls` from its defaults, then the YAML file at `path`, then the overrides, which win.

    An override is `key.sub=value` as typed, or (key, value) with a value to take as it is.
    Raises ConfigError naming the key and, for an unknown one, the key that was probably meant.
    """
    tree = read_yaml(path, TextLoader) if path is not None else {}
    for override in overrides:
        if isinstance(override, str):
            key, _, text = override.partition("=")
            _assign(cls, tree, key.strip(), parse_value(cls, key.strip(), text))
        else:
            _assign(cls, tree, *override)
    return build_config(cls, tree, str(path) if path is not None else "the command line")


def build_config(cls: type[C], tree: dict[str, Any], origin: str) -> C:
    """Validate a plain tree of values; `origin` names it in error messages."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, tree, item, origin) for item in error.errors())) from None


class TextLoader(yaml.SafeLoader):
    """Loads numbers, truth values and dates as the text in the file; pydantic converts it to the type of the field.

    YAML 1.1 would read the run 012 as 10, 1.10 as 1.1 and `yes` as true. null stays null.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (declared by PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path | str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> dict[str, Any]:
    """Read a YAML mapping with a safe loader."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("configs").rglob("*.yaml")], 1, 0.5)
        raise ConfigError(f"{path}: no such configuration file." + (f" Did you mean {near[0]}?" if near else ""))
    try:
        tree = loader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    return tree


def parse_value(cls: type[BaseModel], key: str, text: str) -> Any:
    """The value of `key=text` on the command line, by the annotation of the field.

    A text field takes the characters of `text`. Where the field may be null, null stands for it and "null" for the
    text. A list is YAML if it begins with a bracket or a quotation mark, and otherwise one text. Numbers stay text for
    pydantic to convert. Raises ConfigError for a list or section that is not valid YAML.
    """
    annotation = _annotation(cls, key)
    members = [part for part in _members(annotation) if part is not type(None)]
    nullable = len(members) < len(_members(annotation))
    if all(_is_text(part) for part in members) and members:
        if nullable and text in ("null", '"null"', "'null'"):
            return None if text == "null" else "null"
        return text
    if all(part in (int, float, bool) or _is_text(part) or get_origin(part) is Literal for part in members) and members:
        return None if nullable and text.strip() in ("null", "Null", "NULL", "None", "~") else text
    if get_origin(annotation) is list and not text.lstrip().startswith(("[", "{", '"', "'")):
        return [text]
    try:
        return TextLoader(text).get_single_data() if text else ""
    except (yaml.YAMLError, ValueError):
        advice = '; write ["a.txt", "b.txt"], with quotation marks around texts that hold brackets or commas'
        raise ConfigError(f"'{key}={text}': the value is not valid YAML{advice}") from None


def is_key(cls: type[BaseModel], key: str) -> bool:
    """Return whether `key`, with indices for N, is a setting of `cls`."""
    return _annotation(cls, key) is not None


def _annotation(cls: type[BaseModel], key: str) -> Any:
    """The annotation of the field at a dotted key, or None for an unknown key."""
    annotation: Any = cls
    for part in key.split("."):
        section = _config_class(annotation)
        if part.isdigit() and get_origin(annotation) is list:
            annotation = get_args(annotation)[0]
        elif section is None or part not in section.model_fields:
            return None
        else:
            annotation = section.model_fields[part].annotation
    return annotation


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one type; Annotated types without their metadata."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_text(annotation: Any) -> bool:
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return annotation is str or (bool(choices) and all(isinstance(choice, str) for choice in choices))


def _assign(cls: type[BaseModel], tree: dict[str, Any], key: str, value: Any) -> None:
    node: Any = tree
    *parents, last = key.split(".")
    for depth, part in enumerate(parents, start=1):
        place: Any = _index(node, part, key) if isinstance(node, list) else part
        annotation = _annotation(cls, ".".join(parents[:depth]))
        child: Any = node[place] if isinstance(node, list) else node.get(place)
        if child is None:
            child = node[place] = [{}] if get_origin(annotation) is list else {}
        if isinstance(child, str):
            child = node[place] = _spelled_out(annotation, child)
        if not isinstance(child, (dict, list)):
            raise ConfigError(f"{key}: '{part}' holds a value, not a section")
        node = child
    end: Any = _index(node, last, key) if isinstance(node, list) else last
    node[end] = value


def _spelled_out(annotation: Any, text: str) -> Any:
    """A path that stands for a source, or for a list of one source, as that section or list."""
    section = _config_class(annotation)
    if section is None or "path" not in section.model_fields:
        return text
    return [{"path": text}] if get_origin(annotation) is list else {"path": text}


def _index(node: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"{key}: '{part}' is not an index of a list of {len(node)} entries")
    return int(part)


def _explain(cls: type[BaseModel], tree: dict[str, Any], item: Any, origin: str) -> str:
    location = [part for part in item["loc"] if isinstance(part, int) or not str(part).startswith("function-")]
    path = ".".join(str(part) for part in location)
    value = item["input"]
    if item["type"] == "extra_forbidden":
        return f"{origin}: unknown key '{path}'; {suggest_key(cls, path, value)}"
    if isinstance(value, str) and (path, value) in RENAMED_VALUES:
        return f"{origin}: {path}={value} is now {path}={RENAMED_VALUES[path, value]}"
    if item["type"] == "model_type":
        keys = [setting.key for setting in list_settings(cls) if setting.section == f"{path}."]
        return f"{origin}: {path} is a section of keys, not a value; set {', '.join(keys)}"
    message = item["msg"].removeprefix("Value error, ")
    if not path:
        return f"{origin}: {message}"
    found = "" if repr(value) in message else f" (found {value!r})"
    return f"{origin}: {path}: {message}{found}"


def suggest_key(cls: type[BaseModel], path: str, value: Any = None) -> str:
    """What to write instead of the unknown key `path` with its `value`: "did you mean optim.lr?"."""
    if path in RENAMED_KEYS:
        if isinstance(value, str) and (path, value) in RENAMED_VALUES:
            return f"{path}={value} is now {RENAMED_KEYS[path]}={json.dumps(RENAMED_VALUES[path, value])}"
        linear = "; schedule.kind=linear is now schedule.kind=wsd" if path == "schedule.decay_fraction" else ""
        return f"{path} is now {RENAMED_KEYS[path]}{linear}"
    if isinstance(value, dict) and value:
        path = f"{path}.{next(iter(value))}"
    found = find_key(cls, path)
    if found:
        return f"did you mean {' or '.join(found)}?"
    section = path.rpartition(".")[0] + "." if "." in path else ""
    known = [setting.name for setting in list_settings(cls) if setting.section == section]
    return f"known keys here: {', '.join(sorted(known))}" if known else "--help lists all keys"


def find_key(cls: type[BaseModel], path: str) -> list[str]:
    """Keys of `cls` that `path` may stand for: a common name, the same name in another section, a close spelling."""
    indices = [part for part in path.split(".") if part.isdigit()]
    parts = ["N" if part.isdigit() else part.lower().replace("-", "_") for part in path.split(".")]
    path, section, last = ".".join(parts), "".join(f"{part}." for part in parts[:-1]), parts[-1]
    settings = list_settings(cls)
    keys = [setting.key for setting in settings]
    names: dict[str, list[str]] = {}
    for setting in settings:
        names.setdefault(setting.name, []).append(setting.key)
    here = {setting.name: setting.key for setting in settings if setting.section == section}
    common = [key for key in COMMON_NAMES.get(last, ()) if key.partition("=")[0] in keys][:1]
    if path in keys:
        found = [path]
    elif common:
        found = common
    elif last in names:
        found = names[last][:3]
    elif near := difflib.get_close_matches(last, here, 1, 0.75):
        found = [here[near[0]]]
    elif near := difflib.get_close_matches(last, names, 1, 0.75):
        found = names[near[0]][:3]
    elif near := difflib.get_close_matches(last, COMMON_NAMES, 1, 0.85):
        found = [key for key in COMMON_NAMES[near[0]] if key.partition("=")[0] in keys][:1]
    else:
        found = [here[name] for name in difflib.get_close_matches(last, here, 1, 0.5)]
    return [key.replace(".N.", f".{indices[0] if indices else 0}.") for key in found]


def explain_option(cls: type[BaseModel], option: str, arguments: list[str]) -> str:
    """What to type in place of an unknown `option` that is a setting: "batch_size=8" for --batch-size 8, else ""."""
    name = option.lstrip("-")
    found = find_key(cls, name)
    if not found:
        return ""
    key, _, value = found[0].partition("=")
    if not value:
        given = next((a for a in arguments if a == option or a.startswith(f"{option}=")), option)
        after = arguments[arguments.index(option) + 1 :] if option in arguments else []
        value = given.partition("=")[2] or (after[0] if after and not after[0].startswith("--") else "VALUE")
    return f"settings are written key=value: {key}={value}"


def _config_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _config_class(arg))), None)
