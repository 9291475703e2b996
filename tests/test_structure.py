"""The rules of the source tree: import directions, what start-up may import, no pickle, short files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = {"tokenizer", "pretrain", "finetune", "generate", "scoring"}
# Packages of the library, and which others each may import. `engine.run` and what stands in GROUND need no torch.
ALLOWED = {
    "model": set(),
    "corpus": {"engine"},
    "engine": {"model", "stages"},
    "tokenization": {"corpus", "engine"},
    "export": {"engine", "model", "stages", "tokenization"},
    "stages": set(),
}
GROUND = ("mini_llm.engine.run.", "mini_llm.engine.errors", "mini_llm.engine.config", "mini_llm.engine.settings")
FOLDERS = ["mini_llm", *sorted(STAGES)]
TOOLS = ["chaos", "benchmarks"]
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def modules(folders: list[str]) -> dict[str, Path]:
    found = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if path.name == "__init__.py" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules and names imported anywhere in a file, inside functions and under TYPE_CHECKING too, as a.b.c."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The nodes that stay after repeatedly removing every node without a successor or without a predecessor."""
    left = {node: set(after) & set(graph) - {node} for node, after in graph.items()}
    while True:
        reached = {node for after in left.values() for node in after}
        kept = {node for node, after in left.items() if after and node in reached}
        if len(kept) == len(left):
            return [sorted(left)] if left else []
        left = {node: after & kept for node, after in left.items() if node in kept}


def import_graph(folders: list[str]) -> dict[str, set[str]]:
    known = modules(folders)
    return {
        module: {name if name in known else name.rpartition(".")[0] for name in imported(path)}
        for module, path in known.items()
    }


def test_no_import_circles():
    assert cycles(import_graph(FOLDERS + TOOLS)) == []


def test_an_import_circle_would_be_found():
    graph = import_graph(FOLDERS)
    graph["mini_llm.engine.errors"] |= {"mini_llm.engine.loop"}
    assert cycles(graph) and "mini_llm.engine.loop" in cycles(graph)[0]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package):
    for path in (ROOT / "mini_llm" / package).rglob("*.py"):
        names = imported(path)
        ours = {name.split(".")[1] for name in names if name.startswith("mini_llm.")}
        assert ours <= ALLOWED[package] | {package}, f"{path} imports {ours - ALLOWED[package]}"
        assert not {name.split(".")[0] for name in names} & {*STAGES, *TOOLS, "tests"}, path


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_stage_imports_no_other_stage_and_itself_by_relative_names(stage):
    for path in (ROOT / stage).rglob("*.py"):
        absolute = {
            node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
        }
        assert not {name.split(".")[0] for name in absolute} & {*STAGES, *TOOLS, "tests"}, path


def test_no_test_imports_another_test():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in imported(path) if re.match(r"tests\.(\w+\.)*test_", name)], path


def test_corpus_and_tokenization_need_no_torch():
    for package in ("corpus", "tokenization"):
        for path in (ROOT / "mini_llm" / package).rglob("*.py"):
            names = imported(path)
            ours = {name for name in names if name.startswith("mini_llm.engine.")}
            assert all(name.startswith((*GROUND, "mini_llm.engine.kernels.build")) for name in ours), path
            assert not any(name.split(".")[0] == "torch" for name in names), path


def test_the_model_imports_torch_and_its_file_format_alone():
    for path in (ROOT / "mini_llm" / "model").rglob("*.py"):
        outside = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names) - {"mini_llm"}
        assert outside <= {"torch", "safetensors"}, path


def test_files_are_named_by_subject_short_and_ascii():
    for path in SOURCES:
        assert path.name not in ("utils.py", "helpers.py", "common.py", "misc.py"), path
        assert len(path.read_text().splitlines()) <= 350, path
        assert path.read_text().isascii(), path


def test_no_folder_is_crowded():
    for folder in {path.parent for room in [*FOLDERS, *TOOLS, "tests"] for path in (ROOT / room).rglob("*.py")}:
        most = 25 if folder.name in TOOLS else 20
        assert len(list(folder.glob("*.py"))) <= most, folder


def test_the_trunk_names_no_family_and_stays_under_400_lines():
    layouts = ROOT / "mini_llm" / "model" / "huggingface" / "layouts"
    families = [path.stem for path in layouts.glob("*.py") if path.stem not in ("__init__", "layout")]
    assert len(families) >= 7
    lines = 0
    for name in ("attention", "layers", "norms", "positions", "transformer"):
        text = (ROOT / "mini_llm" / "model" / f"{name}.py").read_text()
        lines += len(text.splitlines())
        assert not re.search("|".join(families), text, re.I), name
    assert lines < 400


def test_nothing_unpickles():
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"\bpickle\b(?!d|s)|torch\.load\(|yaml\.load\(|trust_remote_code", text), path


def loaded_by(code: str, folder: Path = ROOT) -> set[str]:
    program = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('MODULES', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.partition("MODULES")[2].split()}


PROGRAMS = [f"mini_llm {name}" for name in ("export", "runs", "runs diff", "watch", "doctor")]


@pytest.mark.parametrize(
    "command", [*sorted(STAGES), "mini_llm", *PROGRAMS, "finetune predict", "generate inspect", "scoring compare"]
)
def test_help_does_not_import_torch(command):
    stage = command.split()[0]
    program = f"""
import runpy, sys
sys.argv = "{command} --help".split()
try:
    runpy.run_module("{stage}", run_name="__main__")
except SystemExit as end:
    assert not end.code
print("MODULES", *sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    text, _, modules = result.stdout.partition("MODULES")
    assert "Examples" in text and "Exit codes" in text
    heavy = {"torch", "transformers", "datasets", "wandb", "accelerate", "pandas", "sklearn", "jinja2"}
    assert not heavy & set(modules.split())


@pytest.mark.slow
def test_the_first_token_and_the_first_step_import_nothing_heavy(tmp_path):
    # sympy comes with torch._dynamo, DTensor and the check of a given gradient's shape.
    heavy = {"transformers", "datasets", "wandb", "deepspeed", "pandas", "sklearn", "scipy", "matplotlib", "sympy"}
    assert not {*heavy, "accelerate"} & loaded_by("import generate.load, generate.output")
    tree = {
        "model": "gpt",
        "corpus": {"sources": str(tmp_path / "text.txt")},
        "init_embeddings": "random",
        "max_steps": 2,
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question.\n\n" * 2000)
    run = "from pretrain.config import PretrainConfig\nfrom pretrain.run import pretrain\n"
    assert not heavy & loaded_by(f"{run}pretrain(PretrainConfig(**{tree}))", tmp_path)


def configurations() -> list[Path]:
    """Configurations of runs; launch files belong to Accelerate, and test_presets.py tests the architectures."""
    paths = (ROOT / "configs").rglob("*.yaml")
    return sorted(path for path in paths if path.parent.name not in ("accelerate", "model"))


@pytest.mark.parametrize("path", configurations(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_configuration_parses(path):
    from finetune.config import FinetuneConfig
    from mini_llm.engine.config import load_config
    from mini_llm.engine.sweep.file import SweepFile
    from mini_llm.tokenization.config import TokenizerConfig
    from pretrain.config import PretrainConfig

    classes = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "configs": TokenizerConfig, "sweeps": SweepFile}
    wanted = classes[path.parent.name]
    assert isinstance(load_config(wanted, path), wanted)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_parses_every_launch_configuration(path):
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 1


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


def test_every_make_target_that_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text()))
    assert named and named <= targets


def test_every_module_and_file_that_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for module in re.findall(r"python -m ([a-z_.0-9]+)", text):
        assert (ROOT / module.replace(".", "/")).exists() or (ROOT / (module.replace(".", "/") + ".py")).exists(), (
            module
        )
    for name in re.findall(r"\b(?:configs|benchmarks|docs)/[\w./-]+", text):
        assert (ROOT / name.rstrip(".")).exists(), name
    assert readme_commands()
