"""The machine, software and command line of a run, without secrets."""

import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from mini_llm.engine.run.machine import usable_cores

PACKAGES = [
    "torch",
    "accelerate",
    "deepspeed",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "datasets",
    "evaluate",
    "safetensors",
    "numpy",
    "scikit-learn",
    "pydantic",
    "wandb",
    "matplotlib",
]

# Only these variables are recorded: they affect what is computed or where, and never contain a key.
VARIABLES = [
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_USE_DEEPSPEED",
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_OFFLINE",
    "LOCAL_WORLD_SIZE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "SLURM_JOB_ID",
    "SLURM_NNODES",
    "TOKENIZERS_PARALLELISM",
    "WANDB_MODE",
    "WORLD_SIZE",
]

# Folders whose code trains nothing.
LEFT_OUT = {"report", "export", "all_runs", "doctor", "__pycache__"}

_SECRET_WORDS = {"KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS", "PAT"}
_SHORTEST_SECRET = 8
_SECRET_SHAPES = re.compile(r"\b(?:hf_|ghp_|github_pat_|sk-|wandb_v1_)[A-Za-z0-9_-]{16,}")
_URL_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SECRET_ARGUMENT = re.compile(
    r"(?i)^(-{0,2}(?:[\w.-]*[_.-])?(?:api_?key|key|token|secret|password|passwd)=).+", re.DOTALL
)


def command_line() -> str:
    """The command that started this process, quoted for a shell, with `***` in place of secrets."""
    return shlex.join(redact(_SECRET_ARGUMENT.sub(r"\1***", argument)) for argument in sys.orig_argv)


def secrets_at_hand() -> list[str]:
    """Values of environment variables whose name marks them as secret, longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET and _SECRET_WORDS & set(re.split(r"[^A-Z]+", name.upper()))
    }
    return sorted(found, key=len, reverse=True)


def redact(text: str, secrets: list[str] | None = None) -> str:
    """Replace keys, tokens, passwords and URL users, and what looks like one, by `***`."""
    for secret in secrets_at_hand() if secrets is None else secrets:
        text = text.replace(secret, "***")
    text = _SECRET_SHAPES.sub("***", text)
    return _URL_USER.sub("***", text)


def redact_tree(tree: Any) -> Any:
    """Apply `redact` to every string in a tree of plain values."""
    return _redact_tree(tree, secrets_at_hand())


def _redact_tree(tree: Any, secrets: list[str]) -> Any:
    if isinstance(tree, str):
        return redact(tree, secrets)
    if isinstance(tree, Mapping):
        return {key: _redact_tree(value, secrets) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_redact_tree(value, secrets) for value in tree]
    return tree


def describe_environment() -> dict[str, Any]:
    """Python, platform, processor, memory in GB, package versions, git commit and a hash of the code, variables.

    GPUs, the instruction set of torch's operators and whether our kernels are used, if torch is loaded.
    """
    import psutil

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": _gpu_names(),
        **_numerics(),
        "packages": _versions(),
        "code": code_hash(),
        "commit": git_commit(Path(__file__).resolve().parents[3]),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def git_commit(directory: Path) -> str | None:
    """Git commit at `directory`, with `+changes` if tracked files differ from it; None outside a repository."""
    commit = _git(directory, "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _git(directory, "status", "--porcelain", "--untracked-files=no") else "")


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def code_hash() -> str:
    """The first 12 digits of a hash of the code that trains: Python and C++ files of the library and the stages."""
    library = Path(__file__).resolve().parents[2]
    inside = (library / "stages" / "pretrain").is_dir()
    folders = [library] if inside else [library, *(library.parent / stage for stage in ("pretrain", "finetune"))]
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".cpp", ".h") and not LEFT_OUT & set(path.relative_to(folder).parts):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _numerics() -> dict[str, Any]:
    """What decides how the operations of this process round, as far as torch is loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    found = {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    if not torch.cuda.is_available():
        from mini_llm.engine.kernels.load import load_kernels

        found["kernels"] = "compiled" if load_kernels() is not None else "none"
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu_names() -> list[str]:
    # Do not import torch for this: it takes seconds in a stage that does not need it.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
