"""The `transformer` preset equals `torch.nn.Transformer`; `python -m benchmarks.parity` prints the differences."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from mini_llm.model import KVCache, ModelConfig, Seq2SeqLM
from mini_llm.model.heads import EncoderDecoder
from mini_llm.model.positions import sinusoidal_table
from tests.models import randomized

PRESET = yaml.safe_load((Path(__file__).parents[2] / "configs" / "model" / "transformer.yaml").read_text())
VOCABULARY = 64
# hidden_size, num_attention_heads, intermediate_size, num_hidden_layers, num_decoder_layers.
SIZES = [(32, 4, 64, 2, 2), (42, 3, 50, 3, 1), (30, 6, 120, 1, 4)]
BASE = (512, 8, 2048, 6, 6)


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


def their_names(trunk: EncoderDecoder) -> dict[str, list[nn.Parameter]]:
    """Our parameters of each tensor of nn.Transformer: q, k and v are one there."""
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
                    result[f"{side}.layers.{i}.{name}.{part}"] = [getattr(module, part)]
                for name, attention in attentions.items():
                    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
                    result[f"{side}.layers.{i}.{name}.in_proj_{part}"] = [getattr(p, part) for p in projections]
        if stack.config.final_norm:
            result |= {f"{side}.norm.{part}": [getattr(stack.norm, part)] for part in ("weight", "bias")}
    return result


def copy_to_theirs(trunk: EncoderDecoder, theirs: nn.Transformer) -> None:
    theirs.load_state_dict({name: torch.cat([p.detach() for p in ours]) for name, ours in their_names(trunk).items()})


def copy_to_ours(theirs: nn.Transformer, trunk: EncoderDecoder) -> None:
    names, state = their_names(trunk), theirs.state_dict()
    assert names.keys() == state.keys()
    with torch.no_grad():
        for name, parameters in names.items():
            for parameter, rows in zip(parameters, state[name].split([len(p) for p in parameters]), strict=True):
                parameter.copy_(rows)


def run_both(
    ours: Callable[..., Tensor], theirs: nn.Transformer, table: Tensor, bias: Tensor, padded: bool
) -> tuple[Tensor, Tensor]:
    """Logits of ours and theirs (real tokens, V); theirs embeds by `table` (V, C) and ends with table^T and bias."""
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
    return found[target_mask], (expected @ table.T + bias)[target_mask]


def largest(found: Tensor, expected: Tensor) -> float:
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("theirs_first", [False, True], ids=["ours to theirs", "theirs to ours"])
@pytest.mark.parametrize(("norm_place", "final_norm"), [("post", False), ("post", True), ("pre", False), ("pre", True)])
@pytest.mark.parametrize("size", SIZES)
def test_the_transformer_preset_is_torch_nn_transformer(
    size, norm_place, final_norm, theirs_first, padded, assert_parity
):
    config = make_config(size, norm_place=norm_place, final_norm=final_norm)
    ours, theirs = randomized(Seq2SeqLM(config)), randomized(reference(config), seed=1)
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            # A pre-norm stream without a last norm grows with its weights, and its rounding errors with it.
            halved = norm_place == "pre" and not final_norm and "embed" not in name
            parameter.data.mul_(0.5 if halved else 1.0)
    if theirs_first:
        copy_to_ours(theirs, ours.trunk)
    else:
        copy_to_theirs(ours.trunk, theirs)
    with torch.no_grad():
        figure = largest(*run_both(ours, theirs, ours.lm_head.weight, ours.lm_head.bias, padded))
    assert_parity("transformer", "torch.nn.Transformer", "theirs to ours" if theirs_first else "ours to theirs", figure)


def test_decoding_with_a_cache_gives_the_logits_of_torch_nn_transformer(assert_parity):
    config = make_config(SIZES[1])
    ours, theirs = randomized(Seq2SeqLM(config)), reference(config).eval()
    copy_to_theirs(ours.trunk, theirs)
    cached = KVCache(config, 3, 11)

    def by_steps(source: Tensor, target: Tensor, *_: None) -> Tensor:
        memory = ours.trunk.encoder(source)
        return torch.cat([ours(None, ids, cache=cached, memory=memory) for ids in target.split([4] + [1] * 7, 1)], 1)

    with torch.no_grad():
        figure = largest(*run_both(by_steps, theirs, ours.lm_head.weight, ours.lm_head.bias, padded=False))
    assert_parity("transformer", "torch.nn.Transformer", "cache", figure)


def test_the_base_model_is_torch_nn_transformer_as_it_is_initialised(assert_parity):
    torch.manual_seed(0)
    config = make_config(BASE)
    ours, theirs = Seq2SeqLM(config).eval(), reference(config).eval()
    copy_to_theirs(ours.trunk, theirs)
    with torch.no_grad():
        figure = largest(*run_both(ours, theirs, ours.lm_head.weight, ours.lm_head.bias, padded=True))
    assert_parity("transformer", "torch.nn.Transformer, base", "ours to theirs", figure)


@pytest.mark.parametrize("norm_place", ["post", "pre"])
def test_gradients_agree(norm_place, assert_parity):
    config = make_config(SIZES[0], norm_place=norm_place, final_norm=norm_place == "pre")
    ours, theirs = randomized(Seq2SeqLM(config)), reference(config).eval()
    copy_to_theirs(ours.trunk, theirs)
    table = ours.lm_head.weight.detach().clone().requires_grad_()
    for logits in run_both(ours, theirs, table, ours.lm_head.bias, padded=True):
        logits.log_softmax(-1)[:, 7].mean().neg().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    names = their_names(ours.trunk)
    assert names.keys() == expected.keys()
    found = {name: torch.cat([parameter.grad for parameter in names[name]]) for name in names}
    figures = [largest(found[name], expected[name]) for name in expected]
    figures.append(largest(ours.lm_head.weight.grad, table.grad))
    assert_parity("transformer", "torch.nn.Transformer", "gradients", max(figures))
