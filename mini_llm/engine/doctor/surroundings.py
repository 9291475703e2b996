"""Processes, W&B, caches, disk, clock, configurations, and licences of the bundled data."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from importlib import metadata
from pathlib import Path

from mini_llm.engine.all_runs.table import human_size
from mini_llm.engine.doctor.finding import Finding, ok, problem, warning

PING_SECONDS = 5
NEEDED_BYTES = 2 << 30
OLDEST_CLOCK = 1_767_225_600  # 2026-01-01: an earlier time is wrong
LARGE_CACHE = 20 << 30
# A large cache takes long to measure.
MOST_FILES = 50_000


def check_processes() -> Finding:
    """Finding on gloo, which connects processes on CPUs: two ranks in threads of this process add a number."""
    import torch
    from torch import distributed

    results: list[float] = []
    errors: list[str] = []
    store = distributed.HashStore()

    def rank(number: int) -> None:
        try:
            group = distributed.ProcessGroupGloo(store, number, 2, timedelta(seconds=PING_SECONDS))
            tensor = torch.full((1,), float(number + 1))
            group.allreduce([tensor]).wait()  # ty: ignore[missing-attribute]
            results.append(tensor.item())
        except (RuntimeError, ValueError, OSError) as error:
            errors.append((str(error).splitlines() or [""])[0][:160])

    start = time.perf_counter()
    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PING_SECONDS)
    if results != [3.0, 3.0]:
        reason = errors[0] if errors else "no answer"
        return problem("gloo", f"two processes cannot talk to each other ({reason})", "export GLOO_SOCKET_IFNAME=lo")
    return ok("gloo", f"two ranks answered in {1000 * (time.perf_counter() - start):.0f} ms")


def check_nccl() -> Finding | None:
    """Finding on NCCL, which connects processes on GPUs; None without GPU. One rank in a process of its own."""
    import torch
    from torch.cuda import nccl

    if not torch.cuda.is_available():
        return None
    code = (
        "import torch, torch.distributed as d; "
        "d.init_process_group('nccl', store=d.HashStore(), rank=0, world_size=1); "
        "t = torch.ones(1, device='cuda'); d.all_reduce(t); torch.cuda.synchronize(); print(t.item())"
    )
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return problem("NCCL", "no answer", "export NCCL_SOCKET_IFNAME=lo NCCL_DEBUG=INFO")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["failed"])[-1][:160]
        return problem("NCCL", reason, "export NCCL_SOCKET_IFNAME=lo NCCL_DEBUG=INFO")
    return ok("NCCL", f"{'.'.join(map(str, nccl.version()))}, one rank answered")


def check_wandb() -> Finding:
    """Finding on what Weights & Biases will do. It asks no server and shows no key."""
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        return warning("W&B", "not installed; runs are not mirrored", "pip install wandb")
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode == "disabled":
        return ok("W&B", f"{version}, switched off by WANDB_MODE")
    if mode in ("offline", "dryrun"):
        return ok("W&B", f"{version}, offline by WANDB_MODE; a run says how to send it later")
    if os.environ.get("WANDB_API_KEY") or _has_netrc_key():
        return ok("W&B", f"{version}, a key is present; runs are sent")
    if mode in ("online", "run"):
        return problem("W&B", f"{version}, WANDB_MODE={mode} but there is no key", "wandb login")
    return ok("W&B", f"{version}, no key, so that runs are recorded offline (`wandb login` sends them)")


def _has_netrc_key() -> bool:
    """Whether netrc names W&B's server."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rpartition("//")[2].strip("/")
    path = Path(os.path.expanduser(os.environ.get("NETRC") or "~/.netrc"))
    try:
        return f"machine {host}" in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def check_caches() -> list[Finding]:
    """Findings on our cache, and on those of Hugging Face and PyTorch: size, and writable."""
    from platformdirs import user_cache_path

    home = Path(os.path.expanduser(os.environ.get("HF_HOME") or user_cache_path("huggingface")))
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    folders = {"cache": user_cache_path("mini-llm"), "Hugging Face's cache": home}
    if inductor:
        folders["torch.compile's cache"] = Path(inductor)
    return [_check_cache(name, folder) for name, folder in folders.items()]


def _check_cache(name: str, folder: Path) -> Finding:
    if not folder.exists():
        parent = next(path for path in folder.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            return problem(name, f"{folder} cannot be made", "export XDG_CACHE_HOME=/a/folder/of/yours")
        return ok(name, f"{folder}, not made yet")
    fault = _write_fault(folder)
    if fault:
        return problem(name, f"{folder}: {fault}", f"chmod u+rwx {folder}  # or export XDG_CACHE_HOME")
    size, whole = _size(folder)
    text = f"{folder}, {'' if whole else 'more than '}{human_size(size)}"
    return warning(name, text, f"rm -r {folder}  # it is made again") if size > LARGE_CACHE else ok(name, text)


def _size(folder: Path) -> tuple[int, bool]:
    """Bytes of the files below `folder`, and whether all were counted."""
    total = 0
    for number, path in enumerate(folder.rglob("*")):
        if number >= MOST_FILES:
            return total, False
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total, True


def check_disk(runs: Path) -> Finding:
    """Finding on the disk that runs are written to: room, and writable."""
    folder = runs if runs.exists() else runs.resolve().parent
    fault = _write_fault(folder)
    if fault:
        return problem("disk", f"{folder}: {fault}", f"chmod u+rwx {folder}")
    usage = shutil.disk_usage(folder)
    text = f"{human_size(usage.free)} of {human_size(usage.total)} free for {runs}/"
    return (
        ok("disk", text)
        if usage.free >= NEEDED_BYTES
        else warning("disk", text, f"du -sh {runs}/*; python -m mini_llm runs rm NAME")
    )


def _write_fault(folder: Path) -> str:
    """Why no file can be written into `folder`, or ""."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def check_clock(runs: Path, now: Callable[[], float] = time.time) -> Finding:
    """Finding on the clock: not before this release, and not behind the newest file of the runs."""
    seconds = now()
    newest = max((path.stat().st_mtime for path in runs.glob("*/metrics.jsonl")), default=0.0)
    text = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
    if seconds < OLDEST_CLOCK or newest > seconds + 60:
        why = "files in runs/ are newer" if newest > seconds + 60 else "that is in the past"
        return problem("clock", f"{text}: {why}; budgets and certificates need the time", "timedatectl set-ntp true")
    return ok("clock", text)


def check_configurations() -> Finding:
    """Finding on the folder of configurations."""
    from mini_llm.stages import CONFIGS, STAGES

    files = sorted(CONFIGS.rglob("*.yaml"))
    missing = [name for name in ("model", "pretrain", "finetune") if not any((CONFIGS / name).glob("*.yaml"))]
    if missing:
        where = f"{CONFIGS}: no files for {', '.join(missing)}"
        return problem("configurations", where, "pip install --force-reinstall .  # or: git checkout configs")
    return ok("configurations", f"{CONFIGS}, {len(files)} files for {len(STAGES)} stages")


def check_licence() -> Finding:
    """Finding on the bundled data: the built-in text is this Python's standard library."""
    import sysconfig

    library = Path(sysconfig.get_paths()["stdlib"])
    if not (library / "os.py").is_file():
        return problem("built-in text", f"{library} has no Python sources", "pretrain with --data your.txt")
    licence = next((path for path in (library / "LICENSE.txt", library.parent / "LICENSE.txt") if path.is_file()), None)
    where = f" ({licence})" if licence else ""
    return ok("built-in text", f"Python's standard library in {library}, Python Software Foundation License{where}")
