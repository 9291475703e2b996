"""Hugging Face layouts as data: one table per family. Every module in this folder with a LAYOUT is a family."""

from importlib import import_module
from pkgutil import iter_modules

from mini_llm.model.config import ModelConfig
from mini_llm.model.huggingface.layouts.layout import Layout, LayoutError

_MODULES = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.model_type: module.LAYOUT for module in _MODULES if hasattr(module, "LAYOUT")
}


def layout_for(config: ModelConfig, head: str) -> Layout:
    """The layout that fits `config` with `head`. Raises LayoutError that names the conflicting keys."""
    problems = {
        layout.model_type: layout.conflicts(config)
        for layout in LAYOUTS.values()
        if head in layout.architectures.values()
    }
    nearest = min(problems, key=lambda name: len(problems[name]))
    if problems[nearest]:
        raise LayoutError(
            f"no Hugging Face class fits this architecture as a {head} model; "
            f"the nearest, {nearest}, needs {', '.join(problems[nearest])}"
        )
    return LAYOUTS[nearest]


__all__ = ["LAYOUTS", "Layout", "LayoutError", "layout_for"]
