"""Configuration: defaults <- YAML file <- `key.sub=value`, checked by pydantic, unknown keys refused by name.

config = load_config(PretrainConfig, "configs/pretrain/gpt.yaml", ["optim.lr=1e-3"])
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mini_llm.engine.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration class: unknown keys are errors, assignments are checked."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, validate_default=True, coerce_numbers_to_str=True
    )


C = TypeVar("C", bound=Config)
# Letters, digits, '.', '_', '+' and '-': a name under runs/ that stays there.
RunName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]


def flag_overrides(flags: dict[str, Any]) -> list[str]:
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
                "Write: [CONFIG.yaml] [key.sub=value ...], for example optim.lr=1e-3"
            )
    return path, arguments


def load_config(cls: type[C], path: Path | str | None = None, overrides: list[str] | tuple[str, ...] = ()) -> C:
    """Build `cls` from its defaults, then the YAML file at `path`, then `key.sub=value` overrides.

    Raises ConfigError naming the key path and the nearest known key.
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
    if item["type"] == "extra_forbidden":
        known = _known_keys(cls, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1, 0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{origin}: unknown key '{path}'; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    if not path:
        return f"{origin}: {message}"
    return f"{origin}: {path}: {message} (found {item['input']!r})"


def _known_keys(cls: type[BaseModel], location: list[Any]) -> list[str]:
    """Field names of the (nested) configuration class found at `location`."""
    for part in location:
        if isinstance(part, int) or part not in cls.model_fields:
            continue
        found = _config_class(cls.model_fields[part].annotation)
        if found is None:
            return []
        cls = found
    return list(cls.model_fields)


def _config_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _config_class(arg))), None)
