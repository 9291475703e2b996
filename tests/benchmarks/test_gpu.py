"""benchmarks.gpu: its parts run at toy sizes, limits are kept, and every result is on disk at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import Part, Record, parts, run_part, with_mfu

ROOT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("pass", "ok", 0),
        ("import sys; sys.exit('broken')", "failed", 1),
        ("import time; time.sleep(30)", "timeout", None),
        ("import os; os.kill(os.getpid(), 11)", "failed", -11),
    ],
)
def test_a_part_has_a_status_and_keeps_the_figures_it_printed(code, status, exit_code):
    printed = """print('{"speed": 1}\\nnoise\\n{"more": [2]}', flush=True);"""
    start = time.monotonic()
    result = run_part(Part("x", 9, ()), 1.5, python(printed + code))
    assert time.monotonic() - start < 8
    assert (result.status, result.exit_code) == (status, exit_code)
    assert result.figures == {"speed": 1, "more": [2]}
    assert ("broken" in result.output) == ("broken" in code)


def test_the_children_of_a_part_end_with_it(tmp_path):
    child = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, file=open(sys.argv[1], 'w'))"
    run_part(Part("x", 9, ()), 9, [*python(child), str(tmp_path / "pid")])
    state = Path(f"/proc/{int((tmp_path / 'pid').read_text())}/stat")

    def ended() -> bool:
        return not state.exists() or state.read_text().split()[2] == "Z"

    for _ in range(50):
        if ended():
            break
        time.sleep(0.1)
    assert ended(), "a child outlived its part"


def test_results_are_written_one_by_one_in_order_of_worth(tmp_path):
    order = [Part(name, 9, ()) for name in ("a", "b")]
    record = Record(tmp_path / "gpu.json", order)
    for name, figures in (("b", {"training_tokens_per_second": 50.0}), ("a", {"bf16_flops": 100.0})):
        record.add(run_part(Part(name, 9, ()), 9, python(f"print({json.dumps(json.dumps(figures))})")))
    rows = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [row["part"] for row in rows] == ["a", "b"]


def test_mfu_is_speed_times_flops_over_the_ceiling():
    figures = [{"bf16_flops": 1000.0}, {"training_tokens_per_second": 50.0, "flops_per_token": 4.0}]
    figures.append({"training_tokens_per_second": 100.0})
    rows = with_mfu([{"part": str(i), "figures": row} for i, row in enumerate(figures)])
    assert [row["figures"].get("mfu") for row in rows] == [None, 0.2, 0.4]


def test_the_limits_of_the_checks_leave_time_for_the_rest(monkeypatch):
    monkeypatch.setenv("NANOGPT", "somewhere")
    names = [part.name for part in parts(False, None)]
    assert names[:2] == ["machine", "fp32"] and names[-1] == "reviews"
    assert {"fp16", "zero3", "resume", "124 M, nanoGPT"} <= set(names)


@pytest.mark.slow
def test_toy_parts_run_on_a_cpu(tmp_path):
    wanted = ("machine", "124 M, ours", "decode")
    options = [option for name in wanted for option in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--out", str(tmp_path / "gpu.json"), *options]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {row["part"]: row["figures"] for row in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert 0 < rows["124 M, ours"]["mfu"] < 2 and rows["decode"]["ours_fp32_1"] > 0


def test_no_time_left_is_said_not_failed_silently(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--minutes", "0.001", "--only", "decode"]
    result = subprocess.run([*command, "--out", str(tmp_path / "x.json")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "decode: skipped" in result.stdout
