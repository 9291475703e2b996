"""Packed weights: error bounds, file sizes, damaged files."""

import pytest
import torch
from safetensors.torch import load_file

from mini_llm.engine.errors import UserError
from mini_llm.model import HEADS, SequenceClassifier, load_model, save_model
from mini_llm.model.huggingface.directory import WEIGHTS, ModelDirectoryError
from mini_llm.model.huggingface.packed import PACKED, pack, unpack
from mini_llm.model.huggingface.weights import load_tensors, save_tensors
from tests.families import FAMILIES, HEADS_OF, make_config
from tests.models import randomized


@pytest.mark.parametrize(("packing", "most", "share"), [("int8", 127, 0.27), ("int4", 7, 0.145)])
def test_quantized_weights_stay_within_half_a_step_and_take_less_room(packing, most, share, tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(100, 256) * torch.logspace(-4, 2, 100)[:, None]
    packed = pack({"a.weight": weight, "a.bias": torch.ones(3)}, packing)
    back = unpack(packed)
    assert set(back) == {"a.weight", "a.bias"} and torch.equal(back["a.bias"], torch.ones(3))
    group = 256 // packed["a.weight.scale"].size(1)
    assert group == {"int8": 64, "int4": 32}[packing]
    step = weight.unflatten(-1, (-1, group)).abs().amax(-1, keepdim=True) / most
    error = (back["a.weight"] - weight).unflatten(-1, (-1, group)).abs()
    # fp16 scales are rounded by up to 2^-11, or 2^-25 where they are subnormal, which moves every value.
    assert (error <= step / 2 + most * (step * 2**-11 + 2**-25)).all()
    save_tensors({"w": weight}, tmp_path / "whole")
    save_tensors(packed, tmp_path / "packed")
    assert (tmp_path / "packed").stat().st_size < share * (tmp_path / "whole").stat().st_size


@pytest.mark.parametrize("columns", [1, 7, 24, 40, 64])
@pytest.mark.parametrize("packing", ["int8", "int4", "sparse"])
def test_any_shape_survives_packing(packing, columns):
    weight = torch.linspace(-1, 1, 6 * columns).view(6, columns)
    weight[2], weight[3], weight[4] = 0, 1e-30, 1e6
    back = unpack(pack({"w": weight}, packing))["w"]
    assert back.shape == weight.shape and back.isfinite().all() and (back[2] == 0).all()
    assert (back - weight)[[0, 1, 5]].abs().max() <= {"int8": 0.005, "int4": 0.08, "sparse": 0.001}[packing]


def test_sparse_weights_are_exact_in_half_precision_and_their_file_shrinks(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(64, 100).half().float()
    weight[torch.rand(64, 100) < 0.75] = 0
    packed = pack({"w": weight}, "sparse")
    assert torch.equal(unpack(packed)["w"], weight)
    save_tensors(packed, tmp_path / "packed")
    assert (tmp_path / "packed").stat().st_size < 0.2 * 4 * weight.numel()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_packed_weights(family, tmp_path):
    head = HEADS_OF[family][-1]
    model = randomized(HEADS[head](make_config(family, head, 0)))
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_tensors(pack(tensors, "int8"), tmp_path / PACKED)
    (tmp_path / WEIGHTS).unlink()
    loaded = load_model(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        bound = tensor.abs().max() / 127
        assert (loaded[name] - tensor).abs().max() <= bound, name


@pytest.mark.parametrize("lost", [".scale", ".int8"])
def test_damaged_packed_weights_are_an_error_that_names_the_file(lost, tmp_path):
    model = randomized(SequenceClassifier(make_config("bert", "classifier", 0)))
    save_model(model, tmp_path)
    packed = pack(load_file(tmp_path / WEIGHTS), "int8")
    (tmp_path / WEIGHTS).unlink()
    name = next(name for name in packed if name.endswith(lost))
    save_tensors({key: tensor for key, tensor in packed.items() if key != name}, tmp_path / PACKED)
    with pytest.raises((ModelDirectoryError, UserError), match=str(tmp_path)):
        load_model(tmp_path)
    save_tensors({**packed, name: packed[name][:1, :1].contiguous()}, tmp_path / PACKED)
    with pytest.raises((ModelDirectoryError, UserError), match=str(tmp_path)):
        load_model(tmp_path)
    assert load_tensors(tmp_path / PACKED)
