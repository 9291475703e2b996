"""The Python interface: three lines each to load, generate, classify, pretrain and fine-tune."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mini_llm
from mini_llm.engine.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TINY = {"max_steps": 2, "tracking": {"wandb": "disabled"}, "runtime": {"precision": "fp32"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tiny GPT and a classifier made from it, in the current directory."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "text.txt").write_text("to be or not to be, that is the question.\n\n" * 2000)
    rows = "".join(f"{kind} number {i},{kind}\n" for i in range(40) for kind in ("apple", "stone"))
    (folder / "rows.csv").write_text("text,label\n" + rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        gpt = mini_llm.pretrain(data="text.txt", run="tiny", budget=None, sizes={"hidden_size": 32}, **TINY)
        classifier = mini_llm.finetune(model=gpt, data="rows.csv", run="fruit", **{"optim.lr": 1e-2}, **TINY)
        yield gpt, classifier


def test_a_pretrained_run_generates(runs):
    gpt, _ = runs
    assert gpt.path == Path("runs/tiny") and gpt.scores["val/loss"] > 0
    model = mini_llm.load("runs/tiny")
    assert isinstance(model, mini_llm.LanguageModel)
    text = model.generate("to be", max_new_tokens=8)
    assert text and text == model.generate("to be", max_new_tokens=8)
    assert "".join(model.stream("to be", max_new_tokens=8)) == text
    assert model.generate(["to be", "that"], max_new_tokens=8)[0] == text
    assert model.generate("to be", max_new_tokens=8, temperature=0) == gpt.load().generate(
        "to be", max_new_tokens=8, temperature=0, seed=7
    )


def test_longer_texts_may_follow_shorter_ones(runs):
    model = mini_llm.load(runs[0])
    short = model.generate("to be", max_new_tokens=2, temperature=0)
    assert model.generate("to be", max_new_tokens=40, temperature=0).startswith(short)


def test_a_fine_tuned_run_classifies(runs):
    _, run = runs
    assert {"accuracy", "macro_f1"} <= {name.split("/")[1] for name in run.scores}
    classifier = run.load()
    assert isinstance(classifier, mini_llm.TextClassifier) and classifier.labels == ["apple", "stone"]
    one, two = classifier.classify(["apple number 3", "stone"])
    assert one == classifier.classify("apple number 3") and one.label in classifier.labels
    assert one.probability == max(one.probabilities.values()) and sum(two.probabilities.values()) == pytest.approx(1)
    assert classifier.classify([]) == []


def test_probabilities_are_those_of_the_calibration(runs):
    directory = runs[1].path / "model"
    folder = directory / "linear"  # the model is pooled with its linear teacher
    calibration = json.loads((folder / "calibration.json").read_text())
    before = mini_llm.load(directory).classify("apple number 3")
    (folder / "calibration.json").write_text(json.dumps({**calibration, "temperature": 20}))
    after = mini_llm.load(directory).classify("apple number 3")
    (folder / "calibration.json").write_text(json.dumps(calibration))
    assert after.label == before.label and 0.5 < after.probability < before.probability


def test_the_same_call_again_returns_the_finished_run(runs):
    again = mini_llm.pretrain(data="text.txt", run="tiny", budget=None, **{"sizes.hidden_size": 32}, **TINY)
    assert again == runs[0]


def test_errors_are_those_of_the_command_line(runs):
    with pytest.raises(ConfigError, match="optim"):
        mini_llm.pretrain(**{"optim.learning": 1})
    with pytest.raises(ConfigError, match="temperature"):
        mini_llm.load("runs/tiny").generate("x", temperature=-1)
    with pytest.raises(ConfigError, match="temprature"):
        mini_llm.load("runs/tiny").generate("x", temprature=1)
    with pytest.raises(CheckpointError, match="runs/tiny"):
        mini_llm.load("runs/tinny")
    with pytest.raises(CheckpointError, match="runs/nothing"):
        mini_llm.finetune(model="runs/nothing")
    with pytest.raises(AttributeError, match="nothing"):
        mini_llm.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    program = "import sys; before = set(sys.modules); import mini_llm; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name.split(".")[0] for name in result.stdout.split()} <= {"mini_llm", *sys.stdlib_module_names}
    assert set(mini_llm.__all__) <= set(dir(mini_llm))
