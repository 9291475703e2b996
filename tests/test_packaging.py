"""What an installation gets: declared and pinned dependencies, and one package that holds everything."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mini_llm
from mini_llm.stages import STAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
# Import names that differ from the name of the package.
PACKAGES = {"sklearn": "scikit-learn", "yaml": "pyyaml", "llama_cpp": "llama-cpp-python"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(name: str) -> dict[str, list[Requirement]]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    found: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return specifier.version


@pytest.mark.parametrize(
    ("declared", "file"),
    [
        (PROJECT["project"]["dependencies"], "requirements.txt"),
        (PROJECT["dependency-groups"]["dev"], "requirements-dev.txt"),
    ],
    ids=["run", "dev"],
)
def test_every_declared_dependency_is_pinned_within_its_bounds(declared, file):
    pinned = pins(file)
    for requirement in map(Requirement, declared):
        found = pinned.get(canonicalize_name(requirement.name), [])
        assert found, f"{requirement.name} of pyproject.toml is not pinned in {file}: run make requirements"
        assert all(requirement.specifier.contains(version(pin), prereleases=True) for pin in found), requirement


def test_the_tools_for_tests_are_apart_and_agree_on_shared_packages():
    run, tools = pins("requirements.txt"), pins("requirements-dev.txt")
    assert not {"pytest", "ruff", "ty", "pre-commit"} & set(run)
    for name in set(run) & set(tools):
        assert {version(pin) for pin in tools[name]} <= {version(pin) for pin in run[name]}, name


def test_every_import_is_a_declared_dependency():
    extras = [text for texts in PROJECT["project"]["optional-dependencies"].values() for text in texts]
    texts = [*PROJECT["project"]["dependencies"], *extras]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    for path in (path for folder in ("mini_llm", *STAGES) for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - {"mini_llm", *sys.stdlib_module_names}:
                assert canonicalize_name(PACKAGES.get(name, name)) in declared, f"{path} imports {name}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel, as site-packages has it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"mini_llm-{mini_llm.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_installed(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed), "WANDB_MODE": "disabled"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_an_installation_adds_one_name(installed):
    top = sorted(path.name for path in installed.iterdir())
    assert top == ["mini_llm", f"mini_llm-{mini_llm.__version__}.dist-info"]


def test_an_installation_holds_every_file(installed):
    moved = {stage: f"mini_llm/stages/{stage}" for stage in STAGES} | {"configs": "mini_llm/configs"}
    for folder in ("mini_llm", *moved):
        for path in (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts):
            place = installed / moved.get(folder, folder) / path.relative_to(ROOT / folder)
            assert place.is_file(), f"the wheel lacks {path.relative_to(ROOT)}"


def test_folders_called_as_stages_do_not_confuse_an_installation(installed, tmp_path):
    for stage in STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "__init__.py").write_text("raise SystemExit('the wrong package')")
    for stage in ("tokenizer", "generate", "scoring"):
        result = run_installed(installed, tmp_path, "-m", "mini_llm", stage, "--help")
        assert result.returncode == 0, result.stderr
        assert f"mini-llm {stage}" in result.stdout and f"python -m {stage}" not in result.stdout
    found = run_installed(
        installed,
        tmp_path,
        "-c",
        "import mini_llm.stages as s; print(s.INSTALLED, (s.CONFIGS / 'model' / 'gpt2.yaml').is_file())",
    )
    assert found.stdout.split() == ["True", "True"]


@pytest.mark.slow
def test_an_installation_trains_and_generates(installed, tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question.\n\n" * 2000)
    training = ("--data", "text.txt", "--run", "tiny", "max_steps=2", "budget=null", "sizes.hidden_size=32")
    result = run_installed(installed, tmp_path, "-m", "mini_llm", "pretrain", *training)
    assert result.returncode == 0, result.stderr
    text = run_installed(
        installed, tmp_path, "-m", "mini_llm", "generate", "runs/tiny", "to be", "--max-new-tokens", "5"
    )
    assert text.returncode == 0 and text.stdout.strip(), text.stderr
    replay = run_installed(installed, tmp_path, "-m", "mini_llm", "replay", "runs/tiny", "2")
    assert replay.returncode == 0, replay.stderr
