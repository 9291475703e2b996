"""Configuration: defaults, then a YAML file, then `key.sub=value`; validated by pydantic.

config = load_config(PretrainConfig, "configs/pretrain/gpt.yaml", ["optim.lr=1e-3"])

Every field has a description: help texts, docs/settings.md and completion are made from them. An unknown key is an
error that suggests the right one (key_names.py has what other projects call it).
"""

import difflib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

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


def flag_overrides(flags: Mapping[str, Any]) -> list[str]:
    """`key=value` overrides for the flags that were given (are not None)."""
    return [f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]


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


def load_config(cls: type[C], path: Path | str | None = None, overrides: list[str] | tuple[str, ...] = ()) -> C:
    """Build `cls` from its defaults, then the YAML file at `path`, then `key.sub=value` overrides.

    Raises ConfigError naming the key and, for an unknown one, the key that was probably meant.
    """
    tree = read_yaml(path) if path is not None else {}
    for override in overrides:
        key, _, text = override.partition("=")
        _assign(tree, key.strip(), _parse_value(override, text))
    return build_config(cls, tree, str(path) if path is not None else "the command line")


def build_config(cls: type[C], tree: dict[str, Any], origin: str) -> C:
    """Validate a plain tree of values; `origin` names it in error messages."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(cls, tree, item, origin) for item in error.errors())) from None


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping with the safe loader."""
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in Path("configs").rglob("*.yaml")], 1, 0.5)
        raise ConfigError(f"{path}: no such configuration file." + (f" Did you mean {near[0]}?" if near else ""))
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    return tree


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise ConfigError(f"'{override}': the value is not valid YAML; quote it") from None


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    node: Any = tree
    *parents, last = key.split(".")
    for part in parents:
        child = node[_index(node, part, key)] if isinstance(node, list) else node.setdefault(part, {})
        if child is None:
            child = node[part] = {}
        if not isinstance(child, (dict, list)):
            raise ConfigError(f"{key}: '{part}' holds a value, not a section")
        node = child
    node[_index(node, last, key) if isinstance(node, list) else last] = value


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
