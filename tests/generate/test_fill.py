"""`--fill`: the candidates for a mask are those of transformers' masked language models."""

import json

import pytest
import torch

import mini_llm
from generate.__main__ import main
from generate.fill import load_filler
from mini_llm.model import MaskedLM, save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.models import encoder, randomized
from tests.other_models import save_model as save_other


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fill") / "model"
    sizes = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 5, "sep_token_id": 6}
    save_model(randomized(MaskedLM(encoder(**sizes))), directory)
    save_tokenizer(tiny_tokenizer, directory, "masked", 32)
    return directory


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.mark.parametrize("kind", ["bert"])
@pytest.mark.parametrize("text", ["what a [MASK] film", "[MASK] and [MASK] .", "a <mask>"])
def test_candidates_equal_transformers(kind, text, tmp_path):
    theirs, auto = save_other(kind, tmp_path, "MaskedLM")
    ids = auto(text.replace("<mask>", "[MASK]"), return_tensors="pt").input_ids
    with torch.no_grad():
        rows = theirs(input_ids=ids).logits[0][ids[0] == auto.mask_token_id].softmax(-1)
    found = load_filler(tmp_path, "cpu").fill(text, 7)
    assert len(found) == len(rows) == text.count("[MASK]") + text.count("<mask>")
    for ours, row in zip(found, rows, strict=True):
        best = row.topk(7)
        assert [candidate.id for candidate in ours] == best.indices.tolist()
        torch.testing.assert_close(torch.tensor([c.probability for c in ours]), best.values, rtol=1e-4, atol=1e-6)


def test_the_command_fills_several_masks(model, capsys):
    code, out, _ = command(capsys, model, "--fill", "def <mask>(x): return <mask>", "--candidates", 3)
    lines = out.splitlines()
    assert code == 0 and lines[0] == "mask 1 of 2" and lines[4] == "mask 2 of 2" and len(lines) >= 9
    code, out, _ = command(capsys, model, "--fill", "def <mask>(x): return <mask>", "--json")
    row = json.loads(out)
    assert code == 0 and [len(mask) for mask in row["masks"]] == [5, 5]
    assert row["filled"].startswith("def") and "<mask>" not in row["filled"]
    assert "(x): return" in row["filled"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fill", "no mask"), "there is no <mask>"),
        (("--fill", "<mask> " * 50), "shorten it"),
        (("prompt", "--fill", "<mask>"), "leave PROMPT"),
    ],
)
def test_a_wrong_text_is_named(model, capsys, arguments, message):
    code, out, err = command(capsys, model, *arguments)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err


def test_the_python_interface_fills_masks(model):
    (row,) = mini_llm.load(model).fill("def <mask>(x):", count=3)
    assert len(row) == 3 and row[0].probability >= row[1].probability and isinstance(row[0].text, str)


def test_an_encoder_that_should_continue_a_text_is_pointed_to_fill(model, capsys):
    code, _, err = command(capsys, model, "def ")
    assert code == 4 and "--fill" in err
