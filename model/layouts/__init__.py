"""Hugging Face layouts as data: one table per family. A new family is one file here and one entry in LAYOUTS."""

from model.layouts import modernbert, qwen3
from model.layouts.layout import Layout, LayoutError

LAYOUTS: dict[str, Layout] = {layout.model_type: layout for layout in (qwen3.LAYOUT, modernbert.LAYOUT)}


def layout_for(config) -> Layout:
    """The layout that can hold `config`. Raises LayoutError naming, for each family, the keys in the way."""
    problems = {}
    for name, layout in LAYOUTS.items():
        problems[name] = layout.conflicts(config)
        if not problems[name]:
            return layout
    reasons = "; ".join(f"{name} needs {', '.join(conflicts)}" for name, conflicts in problems.items())
    raise LayoutError(f"no Hugging Face class holds this architecture: {reasons}")


__all__ = ["LAYOUTS", "Layout", "LayoutError", "layout_for"]
