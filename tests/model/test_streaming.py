"""A model written one tensor at a time: the same directory in files of bounded size, which transformers reads."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mini_llm.model import CausalLM, load_model, save_model
from mini_llm.model.huggingface.directory import INDEX
from mini_llm.model.huggingface.streamed import stream_model
from tests.models import decoder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [4000, 10**9])
def test_streamed_equals_saved(tied, shard_bytes, tmp_path):
    torch.manual_seed(0)
    model = CausalLM(decoder(tie_word_embeddings=tied))
    asked = []

    def weight(name: str) -> torch.Tensor:
        asked.append(name)
        return model.state_dict()[name]

    save_model(model, tmp_path / "saved")
    stream_model(model, weight, tmp_path / "streamed", shard_bytes)
    assert len(asked) == len(set(asked))
    ours, theirs = load_model(tmp_path / "saved"), load_model(tmp_path / "streamed")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()
    files = sorted(path.name for path in (tmp_path / "streamed").glob("*.safetensors"))
    if shard_bytes == 10**9:
        assert files == ["model.safetensors"]
        assert (tmp_path / "streamed" / files[0]).read_bytes() == (tmp_path / "saved" / files[0]).read_bytes()
        return
    index = json.loads((tmp_path / "streamed" / INDEX).read_text())
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 3
    for file in files:
        tensors = load_file(tmp_path / "streamed" / file)
        # One tensor may be larger than a file should be.
        assert len(tensors) == 1 or sum(tensor.numel() * 4 for tensor in tensors.values()) <= shard_bytes
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "streamed").state_dict()
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_full_disk_is_raised_after_the_last_weight(tmp_path, monkeypatch):
    """A rank that stopped gathering would leave the others waiting."""
    model, asked = CausalLM(decoder()), []

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mini_llm.model.huggingface.streamed.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        stream_model(model, lambda name: asked.append(name) or model.state_dict()[name], tmp_path / "m", 4000)
    counted = len(asked)
    asked.clear()
    stream_model(model, lambda name: asked.append(name), None)
    assert len(asked) == counted
