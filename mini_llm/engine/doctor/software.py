"""Python, packages, compiler and kernels, threads, GPUs and DeepSpeed."""

import os
import platform
import shutil
import sys
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from mini_llm.engine.doctor.finding import Finding, ok, problem, warning
from mini_llm.engine.run.machine import compiler, usable_cores
from mini_llm.stages import INSTALLED

OLDEST_PYTHON = (3, 10)
INSTALL = "pip install --force-reinstall mini-llm" if INSTALLED else "pip install -r requirements.txt"


def check_python() -> Finding:
    """Finding on the version of Python."""
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return problem("Python", f"{text}; 3.10 or newer is needed", "make PYTHON=python3.11 .venv")
    return ok("Python", text)


def check_packages() -> Finding:
    """Finding on the packages that this one declares: installed, and within their bounds."""
    try:
        declared = metadata.requires("mini-llm") or []
    except metadata.PackageNotFoundError:
        declared = _declared_in_checkout()
    wrong = []
    for text in declared:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needed {requirement.specifier}")
    if wrong:
        return problem("packages", "; ".join(wrong), INSTALL)
    return ok("packages", f"{len(declared)} declared packages, all within their bounds")


def _declared_in_checkout() -> list[str]:
    """The dependencies in pyproject.toml of a checkout, whose Python may have no tomllib."""
    import re
    from pathlib import Path

    path = Path(__file__).resolve().parents[3] / "pyproject.toml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    return re.findall(r'"([^"]+)"', found.group(1)) if found else []


def check_torch() -> Finding:
    """Finding on PyTorch and the instructions of the processor that it uses."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return problem("PyTorch", f"cannot be imported ({error})", INSTALL)
    from mini_llm.engine.device import cpu_prefers_bf16

    capability = torch.backends.cpu.get_cpu_capability()
    numbers = "trains in bf16" if cpu_prefers_bf16() else "trains in fp32, because bf16 is not faster"
    text = f"{torch.__version__}, processor with {capability}, {numbers}"
    if not capability.startswith(("AVX", "SVE")) and platform.machine() == "x86_64":
        return warning("PyTorch", text, "unset ATEN_CPU_CAPABILITY")
    return ok("PyTorch", text)


def check_compiler() -> Finding:
    """Finding on the C++ compiler."""
    found = compiler()
    if found is None:
        return warning("compiler", "no C++ compiler: CPU training and encoding are slower", "apt-get install g++")
    return ok("compiler", found)


def check_kernels() -> Finding:
    """Finding on our CPU kernels: compiled and loaded, or why not. It never waits for the compiler."""
    from mini_llm.engine.kernels.build import find_library, private_folder
    from mini_llm.engine.kernels.load import SOURCE, load_kernels

    try:
        built = find_library(SOURCE, private_folder()) is not None
    except OSError as error:
        return problem("kernels", str(error), "export XDG_CACHE_HOME=$HOME/.cache-mini-llm")
    if not built:
        state = "not compiled yet; the first run does it in seconds" if compiler() else "not used without a compiler"
        return ok("kernels", state) if compiler() else warning("kernels", state, "apt-get install g++")
    if load_kernels() is None:
        return ok("kernels", "not used: they need a processor with AVX2, and PyTorch's operators run everywhere")
    return ok("kernels", "compiled and loaded")


def check_threads() -> Finding:
    """Finding on the number of threads and how they wait."""
    import torch

    cores, threads = usable_cores(), torch.get_num_threads()
    wait = os.environ.get("OMP_WAIT_POLICY") or f"{os.environ.get('GOMP_SPINCOUNT', 'default')} rounds of spinning"
    text = f"{threads} of {cores} cores, {wait}"
    if threads > cores:
        return warning("threads", f"{text}: more threads than cores slow each other down", "unset OMP_NUM_THREADS")
    if threads < cores and "OMP_NUM_THREADS" in os.environ:
        return warning("threads", f"{text}: OMP_NUM_THREADS leaves cores unused", "unset OMP_NUM_THREADS")
    return ok("threads", text)


def check_gpu() -> Finding:
    """Finding on CUDA GPUs, and whether they multiply bf16."""
    import torch

    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            return warning(
                "GPU",
                f"a driver is here, but PyTorch {torch.__version__} cannot use it",
                "pip install torch --index-url https://download.pytorch.org/whl/cu130 && nvidia-smi",
            )
        return ok("GPU", "none; the CPU is used")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    free, total = torch.cuda.mem_get_info(0)
    text = f"{', '.join(names)}; {free / 1e9:.0f} of {total / 1e9:.0f} GB free, CUDA {torch.version.cuda}"
    if free < 0.1 * total:
        return warning("GPU", f"{text}: another process holds the memory", "nvidia-smi")
    return ok("GPU", text if torch.cuda.is_bf16_supported() else f"{text}; no bf16, so that fp16 is used")


def check_deepspeed() -> Finding:
    """Finding on DeepSpeed, which only ZeRO needs; its operators are compiled on first use."""
    try:
        version = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return warning("DeepSpeed", "not installed; only runtime.zero_stage needs it", "pip install deepspeed")
    if not compiler():
        return warning("DeepSpeed", f"{version}; without a compiler it cannot build operators", "apt-get install g++")
    import torch

    if not torch.cuda.is_available():
        return ok("DeepSpeed", f"{version}; ZeRO on a CPU needs none of its operators")
    if os.environ.get("CUDA_HOME") or shutil.which("nvcc"):
        return ok("DeepSpeed", f"{version}; nvcc is here, so that its CUDA operators can be built")
    return ok("DeepSpeed", f"{version}; no nvcc, so that its CUDA operators are not built; ZeRO here needs none")
