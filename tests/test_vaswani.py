"""The `transformer` preset is `torch.nn.Transformer`; `pytest tests/test_vaswani.py -s` prints the differences."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from model import ModelConfig, Seq2SeqLM
from model.heads import EncoderDecoder
from model.positions import sinusoidal_table
from tests.test_model import randomized

PRESET = yaml.safe_load((Path(__file__).parent.parent / "configs" / "model" / "transformer.yaml").read_text())
VOCABULARY, TOLERANCE = 64, 1e-5
# hidden_size, num_attention_heads, intermediate_size, num_hidden_layers, num_decoder_layers.
SIZES = [(32, 4, 64, 2, 2), (42, 3, 50, 3, 1), (30, 6, 120, 1, 4)]
BASE = (512, 8, 2048, 6, 6)
seen: dict[str, float] = {}


def make_config(size: tuple[int, ...], **changes) -> ModelConfig:
    width, heads, inner, layers, decoder_layers = size
    choices = {key: value for key, value in PRESET.items() if key != "embedding_scale"}
    assert PRESET["embedding_scale"] == "sqrt(hidden_size)"
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_decoder_layers": decoder_layers,
        "max_position_embeddings": 64,
        "embedding_scale": math.sqrt(width),
    }
    return ModelConfig(**{**choices, **sizes, **changes})


def reference(config: ModelConfig) -> nn.Transformer:
    options = {"dropout": 0.0, "activation": "relu", "batch_first": True, "norm_first": config.norm_place == "pre"}
    shape = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
    norms = [nn.LayerNorm(config.hidden_size) if config.final_norm else None for _ in range(2)]
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*shape, **options), config.num_hidden_layers, norms[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*shape, **options), config.num_decoder_layers, norms[1])
    return nn.Transformer(*shape[:2], custom_encoder=encoder, custom_decoder=decoder, batch_first=True)


def under_their_names(trunk: EncoderDecoder, of: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """`of` every parameter (its values, its gradient) of the blocks as nn.Transformer has it: q, k, v in one."""
    result = {}
    for side, stack in (("encoder", trunk.encoder), ("decoder", trunk.decoder)):
        for i, block in enumerate(stack.blocks):
            attentions, norms = {"self_attn": block.attn}, [block.attn_norm, block.mlp_norm]
            if side == "decoder":
                attentions["multihead_attn"] = block.cross
                norms.insert(1, block.cross_norm)
            modules = {"linear1": block.mlp.up_proj, "linear2": block.mlp.down_proj}
            modules |= {f"norm{n}": norm for n, norm in enumerate(norms, 1)}
            modules |= {f"{name}.out_proj": attention.o_proj for name, attention in attentions.items()}
            for part in ("weight", "bias"):
                for name, module in modules.items():
                    result[f"{side}.layers.{i}.{name}.{part}"] = of(getattr(module, part))
                for name, attention in attentions.items():
                    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
                    result[f"{side}.layers.{i}.{name}.in_proj_{part}"] = torch.cat(
                        [of(getattr(projection, part)) for projection in projections]
                    )
        if stack.config.final_norm:
            result |= {f"{side}.norm.{part}": of(getattr(stack.norm, part)) for part in ("weight", "bias")}
    return result


def run_both(
    ours: EncoderDecoder, theirs: nn.Transformer, table: Tensor, padded: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder states of ours and theirs (real tokens, C); `table` (V, C) is the embedding that theirs looks up in."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(VOCABULARY, (3, 17), generator=generator)
    target = torch.randint(VOCABULARY, (3, 11), generator=generator)
    lengths = torch.tensor([[17, 11], [9, 11], [4, 6]]) if padded else torch.tensor([[17, 11]] * 3)
    source_mask = torch.arange(17) < lengths[:, :1]
    target_mask = torch.arange(11) < lengths[:, 1:]

    def embedded(ids: Tensor) -> Tensor:
        width = table.size(1)
        return table[ids] * math.sqrt(width) + sinusoidal_table(torch.arange(ids.size(1)), width)

    masks = (source_mask, target_mask) if padded else (None, None)
    found = ours(source, target, *masks)
    expected = theirs(
        embedded(source),
        embedded(target),
        tgt_mask=torch.ones(11, 11, dtype=torch.bool).triu(1),
        src_key_padding_mask=~source_mask if padded else None,
        tgt_key_padding_mask=~target_mask if padded else None,
        memory_key_padding_mask=~source_mask if padded else None,
    )
    return found[target_mask], expected[target_mask]


def note(row: str, found: Tensor, expected: Tensor) -> None:
    difference = (found - expected).abs().max().item()
    seen[row] = max(difference, seen.get(row, 0.0))
    assert difference <= TOLERANCE, row


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("norm_place", "final_norm"), [("post", False), ("post", True), ("pre", False), ("pre", True)])
@pytest.mark.parametrize("size", SIZES)
def test_the_transformer_preset_is_torch_nn_transformer(size, norm_place, final_norm, padded):
    config = make_config(size, norm_place=norm_place, final_norm=final_norm)
    ours = randomized(Seq2SeqLM(config)).trunk
    with torch.no_grad():
        # A pre-norm stream without a last norm grows with its weights, and its rounding errors with it.
        for parameter in ours.parameters():
            parameter.mul_(0.5 if norm_place == "pre" and not final_norm else 1.0)
    theirs = reference(config).eval()
    theirs.load_state_dict(under_their_names(ours, lambda parameter: parameter.detach()))
    with torch.no_grad():
        found, expected = run_both(ours, theirs, ours.encoder.embed.weight, padded)
    note(f"{norm_place}-norm, {'with' if final_norm else 'without'} final norm", found, expected)


def test_the_base_model_is_torch_nn_transformer_as_it_is_initialised():
    torch.manual_seed(0)
    config = make_config(BASE)
    ours, theirs = Seq2SeqLM(config).eval().trunk, reference(config).eval()
    theirs.load_state_dict(under_their_names(ours, lambda parameter: parameter.detach()))
    with torch.no_grad():
        found, expected = run_both(ours, theirs, ours.encoder.embed.weight, padded=True)
    note("base: 512 wide, 6 + 6 layers", found, expected)


@pytest.mark.parametrize("norm_place", ["post", "pre"])
def test_gradients_agree(norm_place):
    config = make_config(SIZES[0], norm_place=norm_place)
    ours = randomized(Seq2SeqLM(config)).trunk
    theirs = reference(config).eval()
    theirs.load_state_dict(under_their_names(ours, lambda parameter: parameter.detach()))
    table = ours.encoder.embed.weight.detach().clone().requires_grad_()
    direction = torch.randn(28, 32, generator=torch.Generator().manual_seed(4))
    for states in run_both(ours, theirs, table, padded=True):
        (states * direction).mean().backward()
    found = under_their_names(ours, lambda parameter: parameter.grad)
    found["embedding"] = ours.encoder.embed.weight.grad
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()} | {"embedding": table.grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        note(f"{norm_place}-norm, gradients", found[name], gradient)


def test_table():
    """Prints what the tests above saw; each of them has asserted its own figure."""
    for row, figure in sorted(seen.items()):
        print(f"torch.nn.Transformer  {row:32} max |difference| {figure:.1e}")
