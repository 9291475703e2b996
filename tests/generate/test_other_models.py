"""Models of other projects: the greedy text of `python -m generate` is that of transformers."""

import json

import pytest
import torch

from generate.__main__ import main
from generate.config import GenerateConfig
from generate.load import load_generator
from tests.other_models import save_model

PROMPTS = [
    "what a film",
    " a <|im_end|> caf\u00e9  12 <x> <l> film",
    "<s>isn't it , really ? ",
    "\u6f22\u5b57 \U0001f600",
    "<|endoftext|>Dull [SEP] <extra_id_0>.",
]
LENGTH = 16
CAUSAL = [
    *("gpt2", "gpt2, flags", "gpt2, add_bos_token without a template", "smollm2", "llama", "llama2", "llama2, legacy"),
    *("gemma", "llama, extra special tokens", "qwen3", "qwen3, added tokens of the configuration", "unigram, bytes"),
]
SEQ2SEQ = ["t5", "t5, clean_up", "t5, flags"]


def theirs(model, auto, prompt):
    """(ids, text) of transformers' greedy continuation."""
    encoded = auto(prompt, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        (ids,) = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False).tolist()
    new = ids[1:] if model.config.is_encoder_decoder else ids[encoded["input_ids"].shape[1] :]
    return new, auto.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("kind", [*CAUSAL, *SEQ2SEQ])
def test_greedy_text_is_that_of_transformers(kind, tmp_path, capsys):
    model, auto = save_model(kind, tmp_path, "Seq2SeqLM" if kind in SEQ2SEQ else "CausalLM")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    command = [str(tmp_path), "--file", str(tmp_path / "prompts.txt"), "--temperature", "0", "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, f"--max-new-tokens={LENGTH}"])
    assert stopped.value.code == 0
    # DeepSpeed, which transformers may import, logs on standard output.
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert (row["ids"], row["text"]) == theirs(model, auto, prompt), prompt


def test_rows_of_a_batch_that_transformers_pads_on_the_left(tmp_path):
    model, auto = save_model("llama2", tmp_path, "CausalLM")
    auto.pad_token, auto.padding_side = auto.eos_token, "left"
    encoded = auto(PROMPTS[:3], return_tensors="pt", padding=True)
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        rows = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, pad_token_id=auto.pad_token_id)
    auto.save_pretrained(tmp_path)
    generator = load_generator(tmp_path, GenerateConfig(temperature=0, max_new_tokens=LENGTH), "cpu")
    samples = [generator.sample(prompt, i) for i, prompt in enumerate(PROMPTS[:3])]
    for sample, row in zip(sorted(generator.write(samples), key=lambda s: s.index), rows.tolist(), strict=True):
        assert sample.ids == row[encoded["input_ids"].shape[1] :][: len(sample.ids)]


def test_a_tokenizer_with_a_token_beyond_the_embedding(tmp_path, capsys):
    model, auto = save_model("gpt2, pad token of the configuration alone", tmp_path, "CausalLM", rows=320)
    generator = load_generator(tmp_path, GenerateConfig(temperature=0, max_new_tokens=LENGTH), "cpu")
    assert "beyond the model's 320 embeddings ('<pad>')" in capsys.readouterr().err
    sample = generator.sample(PROMPTS[0])
    text = "".join(generator.stream(sample))
    assert (sample.ids, text) == theirs(model, auto, PROMPTS[0])
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path), "a <pad>"])
    assert stopped.value.code == 3 and "contains the token '<pad>' (id 320)" in capsys.readouterr().err
