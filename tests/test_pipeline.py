"""A small pipeline: text -> tokenizer -> GPT and MLM -> classifiers -> generated text and labels, and transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.run import finetune
from mini_llm.engine.errors import CheckpointError, ConfigError
from pretrain.config import PretrainConfig
from pretrain.run import pretrain

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
FRUIT, METAL = "apple pear plum cherry melon", "iron copper tin lead silver"


def sentences(count: int) -> list[tuple[str, str]]:
    """Sentences about fruit or metal, told apart by their words."""
    rows = []
    for i in range(count):
        label, words = (("fruit", FRUIT), ("metal", METAL))[i % 2]
        names = words.split()
        rows.append((f"number {i}: {names[i % 5]} and {names[i // 5 % 5]} lie on the table", label))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which all stages have run in this process."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "text.txt").write_text("\n".join(text for text, _ in sentences(3000)))
    (folder / "labels.csv").write_text("text,label\n" + "\n".join(f'"{t}",{name}' for t, name in sentences(300)))
    before = Path.cwd()
    os.chdir(folder)
    try:
        for model in ("gpt", "mlm"):
            pretrain(PretrainConfig(model=model, run=model, corpus={"sources": "text.txt"}, **settings(150)))
            finetune(
                FinetuneConfig(
                    model=f"runs/{model}",
                    data={"path": "labels.csv"},
                    epochs=4,
                    batch_size=16,
                    dropout=0.0,
                    **{k: v for k, v in settings(60).items() if k not in ("sizes", "vocab_size", "global_batch_size")},
                )
            )
    finally:
        os.chdir(before)
    return folder


def settings(steps: int) -> dict:
    return {
        "max_steps": steps,
        "budget": None,
        "evaluate_every": steps // 2,
        "global_batch_size": 16,
        "vocab_size": 340,
        "sizes": SIZES,
        "runtime": {"precision": "fp32", "device": "cpu"},
        "tracking": {"wandb": "offline"},
    }


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def summary(folder: Path, run: str) -> dict:
    return json.loads((folder / "runs" / run / "summary.json").read_text())


def test_both_models_learn(folder):
    for run in ("gpt", "mlm"):
        found = summary(folder, run)
        assert found["val/loss"] < 0.9 * found["unigram_loss"]
    assert summary(folder, "gpt")["val/bpb"] < summary(folder, "gpt")["unigram_bpb"]


def test_both_classifiers_learn_and_report_baselines(folder):
    for run in ("gpt-classifier-labels", "mlm-classifier-labels"):
        found = summary(folder, run)
        own, *pooled, majority, tfidf, teacher = found["scores"]
        assert own["accuracy"] > 0.9 and not own["baseline"]
        assert all(row["accuracy"] > 0.9 and not row["baseline"] for row in pooled)
        assert majority["baseline"] and majority["accuracy"] == pytest.approx(0.5, abs=0.05)
        assert tfidf["accuracy"] > 0.9
        assert teacher["baseline"] and teacher["accuracy"] > 0.9
        assert found["labels"] == ["fruit", "metal"]


def test_transformers_loads_every_model_with_the_same_results(folder):
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    from finetune.predict import Classifier
    from mini_llm.model import load_model

    text = "number 7: plum and iron"
    runs = folder / "runs"
    for run, auto in (("gpt", AutoModelForCausalLM), ("mlm", AutoModelForMaskedLM)):
        path = runs / run / "model"
        inputs = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")
        with torch.no_grad():
            theirs = auto.from_pretrained(path)(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits
            ours = load_model(path)(inputs["input_ids"])
        assert (theirs - ours).abs().max() < 1e-4
    for run in ("gpt-classifier-labels", "mlm-classifier-labels"):
        path = runs / run / "model"
        inputs = AutoTokenizer.from_pretrained(path)([text, text + " lie"], return_tensors="pt", padding=True)
        model = AutoModelForSequenceClassification.from_pretrained(path)
        with torch.no_grad():
            theirs = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits.softmax(-1)
        ours = torch.from_numpy(Classifier(path).probabilities([text, text + " lie"]))
        # Padding goes left for a decoder there and right here; neither may matter.
        assert (theirs - ours).abs().max() < 1e-4
        assert model.config.id2label == {0: "fruit", 1: "metal"}


def test_greedy_text_equals_transformers(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = folder / "runs" / "gpt" / "model"
    result = cli(folder, "generate", "runs/gpt", "number 7: ", "--temperature", "0", "--max-new-tokens", "20", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    tokenizer = AutoTokenizer.from_pretrained(path)
    inputs = tokenizer("number 7: ", return_tensors="pt")
    output = AutoModelForCausalLM.from_pretrained(path).generate(
        inputs["input_ids"],
        max_new_tokens=20,
        do_sample=False,
        suppress_tokens=[0, 1, 3, 4, 5, 6, *range(tokenizer.vocab_size, 384)],
    )
    assert output[0, inputs["input_ids"].shape[1] :].tolist() == found["ids"]


def test_predict_labels_new_text(folder):
    texts = ["number 3: melon and pear lie on the table", "number 4: lead and tin lie on the table"]
    (folder / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result = cli(folder, "finetune", "predict", "runs/mlm-classifier-labels", "new.jsonl")
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["label"] for line in result.stdout.splitlines()] == ["fruit", "metal"]


def test_samples_report_and_summary(folder):
    result = cli(folder, "generate", "runs/gpt", "number", "--record", "--max-new-tokens", "8", "--num-samples", "2")
    assert result.returncode == 0, result.stderr
    assert len(json.loads((folder / "runs/gpt/tables/samples.json").read_text())["rows"]) == 2
    result = cli(folder, "mini_llm", "report")
    assert result.returncode == 0, result.stderr
    for run in ("gpt", "mlm", "gpt-classifier-labels", "tokenizer-text"):
        page = (folder / "runs" / run / "report.html").read_text()
        assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page
    result = cli(
        folder, "mini_llm", "summary", "runs/tokenizer-text", "runs/gpt", "runs/mlm", "runs/gpt-classifier-labels"
    )
    assert "runs/gpt/model" in result.stdout and "TF-IDF" in result.stdout and "Try next" in result.stdout


def test_the_same_command_again_does_nothing(folder):
    arguments = json.dumps(settings(150) | {"corpus": {"sources": "text.txt"}, "run": "gpt"})
    (folder / "again.yaml").write_text(arguments)
    before = (folder / "runs/gpt/model/model.safetensors").stat().st_mtime_ns
    result = cli(folder, "pretrain", "again.yaml")
    assert result.returncode == 0 and "Nothing to do" in result.stderr
    assert (folder / "runs/gpt/model/model.safetensors").stat().st_mtime_ns == before
    result = cli(folder, "pretrain", "again.yaml", "optim.lr=1e-4")
    assert result.returncode == 2 and "optim.lr: 0.003 -> 0.0001" in result.stderr


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["pretrain", "optim.lrr=1"], 2, "did you mean optim.lr?"),
        (["pretrain", "sizes.hiden_size=1"], 2, "sizes.hiden_size"),
        (["pretrain", "nonsense"], 2, "key=value"),
        (["pretrain", "--budget", "soon"], 2, "30s, 10m or 4h"),
        (["pretrain", "--data", "missing.txt", "--run", "x"], 3, "missing.txt"),
        (["pretrain", "no.yaml"], 2, "no.yaml"),
        (["finetune", "--model", "runs/none"], 4, "make pretrain"),
        (["finetune", "--model", "runs/gpt", "--data", "labels.csv", "data.label=kind", "run=y"], 3, "kind"),
        (["generate", "runs/gptt", "x"], 4, "runs/gpt"),
        (["generate", "runs/mlm", "x"], 4, "masked"),
        (["tokenizer", "--data", "labels.csv", "vocab_size=100000", "run=z"], 2, "at most"),
    ],
)
def test_user_errors_are_one_message_with_an_exit_code(folder, arguments, code, message):
    result = cli(folder, *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_each_run_is_one_wandb_run_with_its_history(folder):
    for run in ("gpt", "mlm-classifier-labels"):
        identity = json.loads((folder / "runs" / run / "wandb.json").read_text())
        offline = list((folder / "runs" / run / "wandb").glob("offline-run-*"))
        # A recorded sample is a run of its own, linked to this one.
        own = [path for path in offline if str(identity.get("id")) in path.name]
        assert own and len(offline) - len(own) <= (run == "gpt")


def test_a_pretrained_run_is_needed():
    with pytest.raises(CheckpointError, match="make pretrain"):
        finetune(FinetuneConfig(model="runs/nowhere"))


def test_a_batch_size_that_does_not_divide_is_named():
    with pytest.raises((ConfigError, ValueError), match="micro_batch_size"):
        PretrainConfig(global_batch_size=10, micro_batch_size=4)
