"""Tiny models of every kind with random weights, and texts for them, in one folder."""

import json
from pathlib import Path

import pytest
import torch

from mini_llm.model import HEADS, Seq2SeqLM
from mini_llm.model.huggingface.directory import save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.families import make_config
from tests.models import randomized, tiny_config

TEXT = "the river runs under an old bridge while three birds watch from the tall grass near a quiet road"
WORDS = TEXT.split()


def sentence(seed: int, words: int = 12) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (words,), generator=generator))


def write_model(folder: Path, head: str, tokenizer, seed: int = 0, **changes) -> Path:
    """A model directory with weights of order one, so that no two models agree by accident."""
    torch.manual_seed(seed)
    model = HEADS[head](tiny_config(vocab_size=384, max_position_embeddings=32, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_model(model, folder)
    kind = {"classifier": "causal"}.get(head, head)
    save_tokenizer(tokenizer, folder, kind, 32)
    return folder


@pytest.fixture(scope="session")
def lab(tmp_path_factory, tiny_tokenizer) -> Path:
    """runs/gpt, gpt-b, mlm, t5, gpt-classifier, b-classifier; texts, pairs, labelled rows and questions."""
    root = tmp_path_factory.mktemp("scoring")
    runs = root / "runs"
    write_model(runs / "gpt", "causal", tiny_tokenizer)
    write_model(runs / "gpt-b", "causal", tiny_tokenizer, seed=1)
    encoder = {"causal": False, "norm": "layernorm", "num_key_value_heads": 4, "qk_norm": False}
    encoder |= {
        "embedding_norm": True,
        "first_attention_norm": False,
        "decoder_bias": True,
        "classifier_pooling": "mean",
    }
    pairs = make_config("t5", "seq2seq", 0, vocab_size=384, max_position_embeddings=32)
    save_model(randomized(Seq2SeqLM(pairs)), runs / "t5")
    save_tokenizer(tiny_tokenizer, runs / "t5", "seq2seq", 32)
    write_model(runs / "mlm", "masked", tiny_tokenizer, **encoder)
    write_model(runs / "mlm-b", "masked", tiny_tokenizer, seed=1, **encoder)
    labels = {"id2label": {0: "bird", 1: "road"}}
    for seed, name in enumerate(("gpt-classifier", "b-classifier")):
        write_model(runs / name, "classifier", tiny_tokenizer, seed=seed, **labels)

    def rows(name: str, items: list[dict]) -> None:
        (root / name).write_text("".join(json.dumps(item) + "\n" for item in items))

    (root / "held-out.txt").write_text("\n".join(sentence(i) for i in range(60)))
    rows("news.jsonl", [{"text": sentence(100 + i, 5 + i % 20)} for i in range(30)])
    rows("january.jsonl", [{"text": sentence(200 + i)} for i in range(30)])
    rows("february.jsonl", [{"text": sentence(300 + i, 40).upper()} for i in range(30)])
    rows("test.jsonl", [{"text": sentence(400 + i), "label": ["bird", "road"][i % 2]} for i in range(24)])
    rows("pairs.jsonl", [{"source": sentence(500 + i, 4), "target": sentence(600 + i, 4)} for i in range(6)])
    questions = [
        {"question": sentence(700 + i, 6), "choices": WORDS[i % 5 : i % 5 + 4], "answer": i % 4} for i in range(12)
    ]
    rows("questions.jsonl", questions[:9])
    rows("solved.jsonl", questions[9:])
    return root
