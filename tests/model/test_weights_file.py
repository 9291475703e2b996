"""safetensors files: the mode of the umask, equal bytes for equal tensors, regular files only."""

import os
import stat

import pytest
import torch
from safetensors import safe_open

from mini_llm.model import CausalLM, save_model
from mini_llm.model.huggingface.streamed import stream_model
from mini_llm.model.huggingface.weights import load_tensors, save_tensors
from tests.models import decoder


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", [save_model, lambda model, path: stream_model(model, model.state_dict().get, path)])
def test_all_files_of_a_model_have_the_mode_of_the_umask(write, umask, tmp_path):
    write(CausalLM(decoder()), tmp_path / "model")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == 0o666 & ~umask and len(set(modes.values())) == 1


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path):
    tensors = {f"t{number}": torch.full((3,), float(number)) for number in range(9)}
    metadata = {f'key {number}\u00e9\n"\\': f'[{number}, "\x01\u4e2d"]' for number in range(20)}
    contents = set()
    for number in range(5):
        save_tensors(tensors, tmp_path / f"{number}", metadata)
        contents.add((tmp_path / f"{number}").read_bytes())
    assert len(contents) == 1
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == metadata
        assert all(file.get_tensor(name).equal(tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_read(make, tmp_path):
    make(tmp_path / "weights")
    with pytest.raises(OSError, match="not a regular file"):
        load_tensors(tmp_path / "weights")
