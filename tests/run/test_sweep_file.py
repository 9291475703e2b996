"""The sweeps of W&B's file format, offline: what a file means, how the budget is divided, and that sweeps resume."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.signals import Interrupted
from mini_llm.engine.sweep.file import command_line, list_trials, read_sweep_file, sweep_name
from mini_llm.engine.sweep.page import picture, print_table, write_page
from mini_llm.engine.sweep.rounds import TRAINING_SHARE, plan_rounds
from mini_llm.engine.sweep.trials import run_sweep

SHIPPED = Path(__file__).parents[2] / "configs" / "sweeps" / "pretrain.yaml"
# Stands for a stage: the loss is lowest at lr 0.1 and falls with the budget; it stops where told to.
PROGRAM = """
import json, os, pathlib, signal, sys
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
lr, seconds = float(given["optim.lr"]), float(given["budget"].removesuffix("s"))
with open("calls.txt", "a") as file:
    file.write(given["run"] + "\\n")
if pathlib.Path("stop").exists() and given["run"].endswith("lr-0.3"):
    os.remove("stop")
    sys.exit(143)
if lr > 5:
    sys.exit(5)
assert "WANDB_SWEEP_ID" not in os.environ and given["tracking.group"] == "trial-sweep"
run = pathlib.Path("runs", given["run"])
run.mkdir(parents=True, exist_ok=True)
scores = {"val/loss": abs(lr - 0.1) + 1 / seconds, "val/accuracy": lr}
(run / "finished.json").write_text(json.dumps({"finished": "", "seconds": seconds, "scores": scores}))
"""
GRID = {
    "program": "program.py",
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {"optim.lr": {"values": [0.01, 0.1, 0.3, 1.0]}, "budget": {"value": "3m"}},
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a sweep file, and the program that it runs, into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SWEEP_ID", "of-another-sweep")
    (tmp_path / "program.py").write_text(PROGRAM)

    def make(**changes) -> Path:
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump({**GRID, **changes}))
        return path

    return make


def wait_until(happens, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def calls() -> list[str]:
    path = Path("calls.txt")
    return path.read_text().split() if path.exists() else []


def run(path: Path, seconds: float = 60.0, count: int | None = None):
    return run_sweep(read_sweep_file(path), path, seconds, count)


def test_a_grid_runs_every_combination_once_and_writes_table_and_page(write, capsys):
    path = write()
    sweep = run(path)
    assert [result.trial.values["optim.lr"] for result in sweep.results] == [0.1, 0.01, 0.3, 1.0]
    assert sweep.best.run == "trial-sweep-02.lr-0.1" and len(calls()) == 4
    record = json.loads(Path("runs/trial-sweep/sweep.json").read_text())
    assert record["best"] == sweep.best.run and record["results"][0]["settings"] == {"optim.lr": 0.1}
    page = write_page(sweep, Path("runs/trial-sweep")).read_text()
    assert "Best: trial-sweep-02.lr-0.1" in page and page.count("<svg") == 1
    # Numbers stand on the right, names on the left.
    assert '<td class="number" data-label="val/loss">' in page and '<td data-label="run">' in page
    print_table(sweep)
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "0.1"
    assert run(path).best == sweep.best and len(calls()) == 4
    with pytest.raises(ConfigError, match="another configuration"):
        run(path, seconds=90.0)


def test_few_values_of_a_parameter_are_the_labels_of_its_axis(write):
    widths = {"optim.lr": {"value": 0.1}, "sizes.hidden_size": {"values": [96, 128, 192]}, "budget": {"value": "3m"}}
    sweep = run(write(parameters=widths))
    labels = re.findall(r">(\d+)</text>", picture(sweep, "sizes.hidden_size"))
    assert labels[:3] == ["96", "128", "192"]


def test_a_larger_metric_is_better_where_the_file_says_so(write):
    assert run(write(metric={"name": "val/accuracy", "goal": "maximize"})).best.trial.values["optim.lr"] == 1.0


def test_a_stopped_sweep_goes_on_with_the_trials_that_are_left(write):
    path = write()
    Path("stop").touch()
    with pytest.raises(Interrupted, match="resumes"):
        run(path)
    assert len(calls()) == 3
    assert run(path).best.run == "trial-sweep-02.lr-0.1"
    assert len(calls()) == 5 and calls()[2] == calls()[3]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
def test_a_killed_sweep_stops_its_trial(write):
    path = write()
    Path("program.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    code = "from pathlib import Path; from mini_llm.engine.sweep.file import read_sweep_file\n"
    code += "from mini_llm.engine.sweep.trials import run_sweep\n"
    code += f"run_sweep(read_sweep_file(Path({str(path)!r})), Path({str(path)!r}), 60.0, None)"
    environment = {**os.environ, "PYTHONPATH": str(SHIPPED.parents[2])}
    sweep = subprocess.Popen([sys.executable, "-c", code], env=environment)
    wait_until(lambda: Path("pid").exists() and Path("pid").read_text())
    sweep.kill()
    sweep.wait()
    trial = psutil.Process(int(Path("pid").read_text())) if psutil.pid_exists(int(Path("pid").read_text())) else None
    wait_until(lambda: trial is None or not trial.is_running() or trial.status() == psutil.STATUS_ZOMBIE)


def test_a_trial_that_fails_is_listed_and_the_others_go_on(write):
    sweep = run(write(parameters={"optim.lr": {"values": [9.0, 0.1]}}))
    assert [result.exit_code for result in sweep.results] == [0, 5] and sweep.results[1].value is None
    assert "failed (exit code 5)" in write_page(sweep, Path("runs/trial-sweep")).read_text()


def test_a_sweep_whose_trials_all_fail_is_an_error(write):
    with pytest.raises(ConfigError, match="every trial"):
        run(write(parameters={"optim.lr": {"values": [9.0, 8.0]}}))


def test_successive_halving_trains_the_best_again_for_longer(write):
    path = write(
        parameters={"optim.lr": {"values": [0.01, 0.1, 0.3, 1.0]}}, early_terminate={"type": "hyperband", "eta": 2}
    )
    sweep = run(path, seconds=120.0)
    assert sorted(result.round.number for result in sweep.results) == [1, 1, 1, 1, 2, 2, 3]
    assert {result.trial.values["optim.lr"] for result in sweep.results if result.round.number == 2} == {0.1, 0.01}
    assert sweep.best.run == "trial-sweep-02.lr-0.1-round-3" and len(calls()) == 7
    assert sweep.results[0].round.seconds == pytest.approx(4 * sweep.results[-1].round.seconds, rel=0.01)
    run(path, seconds=120.0)
    assert len(calls()) == 7


@pytest.mark.parametrize(
    ("trials", "eta", "counts"), [(9, 3, [9, 3, 1]), (8, None, [8]), (4, 1.5, [4, 2, 1]), (1, 3, [1])]
)
def test_rounds_divide_the_budget_evenly(trials, eta, counts):
    rounds = plan_rounds(trials, 1000.0, eta)
    assert [one.trials for one in rounds] == counts
    assert sum(one.trials * one.seconds for one in rounds) == pytest.approx(1000 * TRAINING_SHARE, rel=0.01)
    with pytest.raises(ConfigError, match="too short"):
        plan_rounds(trials, 5.0, eta)


def test_the_budget_that_an_error_suggests_is_enough():
    with pytest.raises(ConfigError) as error:
        plan_rounds(9, 30.0, 3)
    plan_rounds(9, 60 * float(re.search(r"--budget ([\d.]+)m", str(error.value))[1]), 3)


def test_random_trials_are_different_within_their_ranges_and_the_same_in_every_launch(write):
    parameters = {
        "a": {"min": 0.001, "max": 0.1, "distribution": "log_uniform_values"},
        "b": {"min": 1, "max": 4},
        "c": {"min": 0.0, "max": 0.5},
        "d": {"min": 0.0, "max": 0.5, "distribution": "q_uniform", "q": 0.1},
        "e": {"values": ["x", None, True]},
        "f": {"value": 3},
    }
    file = read_sweep_file(write(method="random", parameters=parameters))
    trials = list_trials(file, "s", 200)
    assert trials == list_trials(file, "s", 200) and len({str(trial.values) for trial in trials}) == 200
    values = {key: [trial.values[key] for trial in trials] for key in parameters}
    assert 0.001 <= min(values["a"]) < 0.01 < max(values["a"]) <= 0.1
    assert sum(value < 0.01 for value in values["a"]) == pytest.approx(100, abs=30)
    assert set(values["b"]) == {1, 2, 3, 4} and 0 <= min(values["c"]) <= max(values["c"]) <= 0.5
    assert {round(10 * value, 6) for value in values["d"]} == {0, 1, 2, 3, 4, 5}
    assert set(values["e"]) == {"x", None, True} and set(values["f"]) == {3}
    assert len(list_trials(read_sweep_file(write(method="random", run_cap=3)), "s", None)) == 3
    # There are only four different ones.
    assert len(list_trials(read_sweep_file(write(method="random")), "s", 50)) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "bayes"}, "wandb sweep"),
        ({"metric": {"name": "test/accuracy"}}, "only validation"),
        ({"parameters": {"optim.lr": {"min": 1, "max": 2}}}, "grid needs values for optim.lr"),
        ({"parameters": {"optim.lr": {"min": 2, "max": 1}}}, "min is the smaller"),
        ({"parameters": {"optim.lr": {"value": 1, "values": [2]}}}, "give either"),
        ({"parameters": {"optim": {"parameters": {"lr": {"value": 1}}}}}, "optim.lr"),
        ({"parameters": {"run": {"value": "x"}}}, "names its runs"),
        ({"parameters": {"budget": {"values": ["1m", "2m"]}}}, "same time"),
        ({"parameters": {}}, "parameters"),
        ({"metod": "grid"}, "metod"),
        ({"command": ["python", "program.py"]}, "args"),
        ({"command": ["${args_json}"]}, "args_json"),
        ({"program": ""}, "program is missing"),
    ],
)
def test_a_file_that_cannot_be_run_is_an_error_that_names_the_key(write, changes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        read_sweep_file(write(**changes))


def test_a_metric_that_no_run_has_is_an_error_that_lists_those_it_has(write):
    with pytest.raises(ConfigError, match="val/bpb"):
        run(write(metric={"name": "val/bpb"}))


def test_the_shipped_file_gives_the_command_that_the_agent_of_wandb_would_start():
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    file = read_sweep_file(SHIPPED)
    trial = list_trials(file, sweep_name(file, SHIPPED), None)[0]
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in trial.values.items()}})["args"]
    assert command_line(file, trial.values) == [sys.executable, "-m", "pretrain", *args]
    assert len(plan_rounds(9, 1800.0, file.early_terminate.eta)) == 3


@pytest.mark.slow
def test_a_sweep_of_pretraining_runs_from_the_command_line(tmp_path, monkeypatch):
    """Two trials by the real commands; the same command again starts no process."""
    from typer.testing import CliRunner

    from mini_llm.__main__ import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(SHIPPED.parents[2]))
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question.\n\n" * 3000)
    fixed = {"corpus.sources": "text.txt", "vocab_size": 300, "sizes.num_hidden_layers": 1, "max_steps": 5}
    fixed |= {"tracking.wandb": "disabled", "init_embeddings": "random", "sizes.max_position_embeddings": 16}
    tree = {
        "program": "pretrain",
        "command": ["${env}", "python", "-m", "${program}", "${args}"],
        "method": "grid",
        "metric": {"name": "val/loss"},
        "parameters": {
            **{key: {"value": value} for key, value in fixed.items()},
            "sizes.hidden_size": {"values": [16, 32]},
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    for _ in range(2):
        result = CliRunner().invoke(app, ["sweep", "small.yaml", "--budget", "40s"])
        assert result.exit_code == 0, result.output
        assert "hidden_size-16" in result.output and "sweep.html" in result.output
    assert len((tmp_path / "runs/small-sweep-01.hidden_size-16/command.txt").read_text().splitlines()) == 2


def test_the_commands_of_the_document_are_accepted(monkeypatch):
    from typer.testing import CliRunner

    from mini_llm.__main__ import app
    from mini_llm.engine.errors import UserError

    root, asked = SHIPPED.parents[2], []

    def remember(file, path, seconds, count):
        asked.append((file.method, seconds, len(list_trials(file, "s", count))))
        raise UserError("enough")

    monkeypatch.chdir(root)
    monkeypatch.setattr("mini_llm.engine.sweep.trials.run_sweep", remember)
    text = (root / "docs" / "scaling.md").read_text()
    for command in re.findall(r"^python -m mini_llm (sweep.*)$", text, re.M):
        assert isinstance(CliRunner().invoke(app, command.split()).exception, UserError)
    assert asked == [("random", 1800.0, 9), ("random", 7200.0, 27)]
