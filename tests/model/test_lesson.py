"""Every file, test and name in docs/transformer.md exists."""

import ast
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LESSON = (ROOT / "docs" / "transformer.md").read_text()
FIGURES = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", LESSON)
LINKS = re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", LESSON)
FAMILIES = re.findall(r"```yaml\n# (\S+)\n(.*?)```", LESSON, re.S)


def defined(path: Path) -> set[str]:
    """Functions, classes, methods ("Class.method") and variables of a module."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


def test_every_link_points_at_what_its_text_names():
    for text, target in set(LINKS):
        path = (ROOT / "docs" / target).resolve()
        assert path.is_file() and path.is_relative_to(ROOT), target
        if text != f"docs/{target}":  # a link to a whole file
            assert text.strip("`") in defined(path), text


def test_the_lesson_shows_both_layers():
    assert FIGURES == ["images/encoder-layer.svg", "images/decoder-layer.svg"]
    assert all((ROOT / "docs" / figure).is_file() for figure in FIGURES)


def test_every_test_and_path_is_a_link_or_exists():
    assert len([text for text, _ in LINKS if text.startswith("`test_")]) >= 40
    for name in re.findall(r"(?<!\[)`(\w+/[\w./-]*)`", LESSON):
        assert (ROOT / name).exists(), name
    assert not re.findall(r"(?<!\[)`(test_\w+)`", LESSON)


def test_every_property_is_in_the_lesson():
    """Every tested property is taught."""
    for name in ("test_transformer_properties", "test_positions"):
        tests = {test for test in defined(ROOT / "tests" / "model" / f"{name}.py") if test.startswith("test_")}
        assert not tests - {text.strip("`") for text, _ in LINKS}


def test_the_families_in_the_lesson_match_their_presets():
    assert {path for path, _ in FAMILIES} == {str(p.relative_to(ROOT)) for p in (ROOT / "configs/model").glob("*.yaml")}
    for path, text in FAMILIES:
        said, preset = yaml.safe_load(text), yaml.safe_load((ROOT / path).read_text())
        assert said and said.items() <= preset.items(), path
