"""The cache of compiled kernels: a library that is damaged or not ours is never loaded, and a compiler may hang."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mini_llm.engine.kernels import build, inductor
from mini_llm.engine.run import state as run_state

if build.compiler() is None:
    pytest.skip("no C++ compiler", allow_module_level=True)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small source, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "FLAGS", ["-shared", "-fPIC"])
    monkeypatch.setattr(build, "_hung", {})
    for cached in (build.load_library, run_state.say):
        cached.cache_clear()
    path = tmp_path / "source" / "seven.cpp"
    path.parent.mkdir()
    path.write_text('extern "C" int seven() { return 7; }\n')
    yield path
    for cached in (build.load_library, run_state.say):
        cached.cache_clear()


def load(source):
    build.load_library.cache_clear()
    return build.load_library(source)


def cached(tmp_path):
    (path,) = (tmp_path / "cache" / "mini-llm").iterdir()
    return path


def copy_of_another(path):
    shutil.copy(sys.executable, path)


def linked(path):
    shutil.move(path, path.parents[2] / "moved.so")
    path.symlink_to(path.parents[2] / "moved.so")


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "empty": lambda path: path.write_bytes(b""),
    "another library": copy_of_another,
    "a link out of the folder": linked,
    "writable by others": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_compiled_again(damage, source, tmp_path, capfd):
    library, reason = load(source)
    assert library.seven() == 7 and reason == ""
    good = cached(tmp_path).read_bytes()
    DAMAGES[damage](cached(tmp_path))
    # In another process, since this one has the file mapped.
    script = "import sys; from pathlib import Path; from mini_llm.engine.kernels import build; "
    script += "build.FLAGS = ['-shared', '-fPIC']; print(build.load_library(Path(sys.argv[1]))[0].seven())"
    done = subprocess.run([sys.executable, "-c", script, str(source)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
    assert "compiling it again" in done.stderr and "Traceback" not in done.stderr
    assert cached(tmp_path).read_bytes() == good and not cached(tmp_path).is_symlink()


def test_an_intact_library_is_not_compiled_again(source, tmp_path, monkeypatch):
    load(source)
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert load(source)[0].seven() == 7
    (tmp_path / "source" / "header.h").write_text("// another source, another library\n")
    assert "no C++ compiler found" in load(source)[1]


def test_only_the_user_may_write_to_the_folder(source, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cache" / "mini-llm"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    load(source)
    assert folder.stat().st_mode & 0o777 == 0o700 and cached(tmp_path).stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(build.os, "geteuid", lambda: folder.stat().st_uid + 1)
    library, reason = load(source)
    assert library is None and "belongs to another user" in reason and "XDG_CACHE_HOME" in reason


def test_a_compiler_that_hangs_is_ended_and_the_slow_path_is_said_once(source, tmp_path, monkeypatch, capsys):
    hanging = tmp_path / "hanging-compiler"
    hanging.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/child\nwait\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("CXX", str(hanging))
    monkeypatch.setattr(build, "COMPILE_SECONDS", 0.5)
    started = time.monotonic()
    for _ in range(2):
        library, reason = load(source)
        assert library is None and "did not finish in" in reason and "CXX" in reason
    assert time.monotonic() - started < 10, "the second attempt waited too"
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the compiler's child still runs")
    assert capsys.readouterr().err.count("the compiled CPU kernels are not used") == 1
    assert os.listdir(tmp_path / "cache" / "mini-llm") == []


@pytest.mark.parametrize("body, said", [("exit 0", "library.so"), ("echo 'broken' >&2; exit 3", "failed: broken")])
def test_a_compiler_that_fails_leaves_nothing(body, said, source, tmp_path, monkeypatch):
    broken = tmp_path / "broken-compiler"
    broken.write_text(f"#!/bin/sh\n{body}\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    library, reason = load(source)
    assert library is None and said in reason
    assert os.listdir(tmp_path / "cache" / "mini-llm") == []


def test_the_cache_of_torch_compile_is_private_and_emptied_when_damaged(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(inductor.VARIABLE, "/given/by/the/user")
    inductor.use_private_cache()
    assert os.environ[inductor.VARIABLE] == "/given/by/the/user"
    folder = tmp_path / "cache" / "mini-llm" / "inductor"
    for size in (None, 0, 1000, -1):
        monkeypatch.delenv(inductor.VARIABLE)
        (folder / "ab").mkdir(parents=True, exist_ok=True)
        library = shutil.copy(build.build_library(source, build.private_folder()), folder / "ab" / "cab.so")
        if size is not None:
            os.truncate(library, size % library.stat().st_size)
        inductor.use_private_cache()
        assert os.environ[inductor.VARIABLE] == str(folder) and folder.parent.stat().st_mode & 0o077 == 0
        assert library.exists() == (size is None) and ("cab.so: damaged" in capsys.readouterr().err) != library.exists()
        run_state.say.cache_clear()
