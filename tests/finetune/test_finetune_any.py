"""Fine-tuning from Hugging Face directories of every family, as written by transformers."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from finetune.__main__ import app
from finetune.config import FinetuneConfig
from finetune.encode import padding_id
from finetune.predict import Classifier, predict
from finetune.pretrained import find_pretrained, load_classifier
from finetune.run import finetune
from mini_llm.engine.cli import run_app
from mini_llm.engine.config import load_config
from mini_llm.engine.errors import CheckpointError
from mini_llm.model import load_model
from tests.foreign_tokenizers import KINDS, ROWS, TEXTS, TOKENIZERS, write_tokenizer
from tests.models import randomized

LANGUAGE_MODEL = {"bert": AutoModelForMaskedLM, "modernbert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SETTINGS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0},
    "bert": {**SIZES},
    "llama": {**SIZES, "num_key_value_heads": 2, "rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False},
    "modernbert": {**SIZES, "num_hidden_layers": 4, "local_attention": 8, "pad_token_id": 3},
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
}
# One row a run: the class that wrote it ("base" has no head and no prefix), sharded or not, in which precision.
RUNS = {
    "gpt2": ("base", False, torch.float32),
    "bert": ("language model", True, torch.float32),
    "llama": ("language model", True, torch.bfloat16),
    "qwen3": ("language model", False, torch.float16),
    "modernbert": ("base", True, torch.float32),
    "t5": ("language model", False, torch.float32),
}
LEFT_BEHIND = {
    "bert": "cls.predictions.transform.dense.weight",
    "qwen3": "lm_head.weight",
    "t5": None,
    "llama": None,
    "gpt2": None,
    "modernbert": None,
}


def write_model(family: str, directory: Path, vocab_size: int, head: str, sharded: bool, dtype: torch.dtype) -> None:
    config = AutoConfig.for_model(family, vocab_size=vocab_size, **SETTINGS[family])
    auto = AutoModel if head == "base" else LANGUAGE_MODEL.get(family, AutoModelForCausalLM)
    model = randomized(auto.from_config(config)).to(dtype)
    model.save_pretrained(directory, max_shard_size="20KB" if sharded else "1GB")
    assert (directory / "model.safetensors.index.json").exists() == sharded


@pytest.mark.slow
@pytest.mark.parametrize("family", TOKENIZERS)
def test_transformers_loads_a_fine_tuned_model(family, tmp_path, monkeypatch, capsys):
    source = tmp_path / "pretrained"
    write_model(family, source, write_tokenizer(family, source).vocab_size + 5, *RUNS[family])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS))
    config = FinetuneConfig(
        model=str(source),
        run="classifier",
        data={"path": "labels.csv", "max_length": 40},
        max_steps=3,
        budget=None,
        batch_size=8,
        runtime={"precision": "fp32", "device": "cpu"},
        tracking={"wandb": "disabled"},
        ensemble="none",
        # A random model's features hardly vary, so that at the usual rates they would leave the fitted output layer.
        optim={"lr": 1e-6, "embedding_lr": 1e-6},
    )
    scores = finetune(config)
    assert 0 <= scores["validation/accuracy"] <= 1
    said = capsys.readouterr().err
    new = {"gpt2": "score.weight", "llama": "score.weight", "qwen3": "score.weight"}.get(family, "classifier.bias")
    assert f"newly initialized: {new}" in said or f", {new}" in said
    assert f"tokenizer: {KINDS.get(family, 'byte-level BPE')}" in said
    assert ("not used" in said) == (LEFT_BEHIND[family] is not None) and (LEFT_BEHIND[family] or "") in said

    directory = tmp_path / "runs" / "classifier" / "model"
    ours = Classifier("runs/classifier")
    assert (directory / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    auto = AutoTokenizer.from_pretrained(directory)
    theirs = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert theirs.config.model_type == family and auto.model_max_length == ours.max_length == 40
    assert theirs.config.pad_token_id == auto.pad_token_id == padding_id(ours.tokenizer)
    batch = auto(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert batch["attention_mask"].sum(1).unique().numel() > 2
    with torch.no_grad():
        expected = theirs(**batch).logits.softmax(-1)
    assert (torch.from_numpy(ours.probabilities(TEXTS)) - expected).abs().max() < 1e-5
    assert expected.std(0).min() > 1e-4

    (tmp_path / "new.txt").write_text("\n".join(TEXTS[:2]))
    predict(directory, "new.txt", output=tmp_path / "labelled.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [theirs.config.id2label[i] for i in expected[:2].argmax(-1).tolist()]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_the_trunk_is_the_same_with_and_without_a_head(family, tmp_path):
    """Every combination of head and precision gives the same trunk and lists the new and the unused tensors."""
    labels = {0: "a", 1: "b", 2: "c"}
    found = {}
    for head in ("base", "language model"):
        for dtype in (torch.float32, torch.bfloat16):
            directory = tmp_path / f"{head}-{dtype}"
            write_model(family, directory, 70, head, head == "base", dtype)
            found[head, dtype] = model = load_model(directory, head="classifier", id2label=labels)
            assert next(model.parameters()).dtype == torch.float32
            assert not any(name.startswith("trunk.") for name in model.newly_initialized)
            assert not any("attn" in name or "embed" in name for name in model.left_behind)
    for (_, dtype), model in found.items():
        wanted = found["base", dtype].trunk.state_dict()
        exact = found["base", torch.float32].trunk.state_dict()
        for name, tensor in model.trunk.state_dict().items():
            assert torch.equal(tensor, wanted[name]), name
            assert torch.equal(tensor, exact[name].to(dtype).float()), name


def test_labels_of_a_classifier_are_replaced(tmp_path):
    write_tokenizer("bert", tmp_path)
    config = AutoConfig.for_model("bert", vocab_size=210, num_labels=5, **SETTINGS["bert"])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, head="classifier", id2label={0: "a", 1: "b"})
    assert model.newly_initialized == ["classifier.weight", "classifier.bias"]
    assert model.left_behind == ["classifier.weight", "classifier.bias"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tokenizer = write_tokenizer("bert", tmp_path)
    write_model("bert", tmp_path, tokenizer.vocab_size - 1, "base", False, torch.float32)
    with pytest.raises(CheckpointError, match="the tokenizer has"):
        load_classifier(FinetuneConfig(), tmp_path, ["a", "b"], tokenizer)


def test_a_family_without_classifiers_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian", "architectures": ["MarianMTModel"]}))
    with pytest.raises(CheckpointError, match=r"a marian model.*bert, gpt2, llama"):
        find_pretrained(tmp_path)


def test_init_is_an_alias_of_model(monkeypatch, capsys, tmp_path):
    seen = []
    monkeypatch.setattr("finetune.run.finetune", seen.append)
    for flag in ("--init", "--model"):
        with pytest.raises(SystemExit):
            run_app(app, "finetune", [flag, "models/some-bert", "epochs=2"])
    assert seen == [FinetuneConfig(model="models/some-bert", epochs=2)] * 2
    monkeypatch.undo()
    with pytest.raises(SystemExit) as ended:
        run_app(app, "finetune", ["--init", str(tmp_path / "nowhere")])
    assert ended.value.code == 4 and "no pretrained model there" in capsys.readouterr().err


def test_the_learning_rate_follows_the_width_unless_given():
    """Other optimizer settings, given with or without it, leave AdamW in place."""
    config = load_config(FinetuneConfig, None, ["optim.weight_decay=0.1"]).optim
    assert config.name == "adamw" and config.weight_decay == 0.1
    assert config.for_width(256).lr == 5e-4 and 2e-5 <= config.for_width(768).lr <= 6e-5
    given = load_config(FinetuneConfig, None, ["optim.lr=1e-3"]).optim
    assert given.name == "adamw" and given.for_width(768).lr == 1e-3
