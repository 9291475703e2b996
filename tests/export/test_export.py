"""GGUF export: tensors and vocabulary as llama.cpp expects them, read back by transformers and our check; refusals."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, Keys, TokenType
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from mini_llm.engine.cli import run_app
from mini_llm.engine.errors import CheckpointError
from mini_llm.export import check_text
from mini_llm.export.__main__ import app
from mini_llm.export.architectures import interleave, rope_factors
from mini_llm.export.check import check_gguf, rounding
from mini_llm.export.encoders import make_encoder
from mini_llm.export.vocabulary import vocabulary_of
from mini_llm.export.write import FILE_TYPES, export_gguf
from mini_llm.model import HEADS, ModelConfig, save_model
from mini_llm.model.huggingface.layouts import LAYOUTS
from mini_llm.model.positions import rotary_table, rotate
from mini_llm.tokenization.gate import hostile_strings
from mini_llm.tokenization.save import save_tokenizer
from tests.export.tiny_tokenizers import train_sentencepiece, write_byte_level
from tests.families import LLAMA3
from tests.models import randomized

VOCABULARY = 384
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "intermediate_size": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "decoder_start_token_id": 3,
}
GATED = {"gated_mlp": True, "hidden_act": "gelu_new", "tie_word_embeddings": False, "logit_scale": 1.0}
MODELS = {
    "llama": ("llama", {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "llama with scaled positions": ("llama", {"rope_scaling": LLAMA3, "tie_word_embeddings": False, "head_dim": 24}),
    "llama with linear positions": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 32}),
    "gpt2": ("gpt2", {"hidden_act": "gelu_new"}),
    "t5": ("t5", {**GATED, "num_decoder_layers": 1, "head_dim": 32}),
    "t5, version 1.0": ("t5", {"gated_mlp": False, "hidden_act": "relu", "logit_scale": 64**-0.5}),
}


def make_model(family: str, head: str, **changes) -> torch.nn.Module:
    fixed = {key: value for key, value in LAYOUTS[family].fixed.items() if not callable(value)}
    return randomized(HEADS[head](ModelConfig(**{**COMMON, **fixed, **changes})))


@pytest.fixture(scope="session")
def written(tiny_tokenizer, tmp_path_factory):
    """Directory of one of MODELS, and the model in it."""
    made = {}

    def write(name: str):
        if name not in made:
            family, changes = MODELS[name]
            head = "seq2seq" if family == "t5" else "causal"
            model = make_model(family, head, **changes)
            directory = tmp_path_factory.mktemp(family) / "tiny"
            save_model(model, directory)
            save_tokenizer(tiny_tokenizer, directory, head, 64)
            made[name] = directory, model
        return made[name]

    return write


def fields_of(file) -> dict:
    return {key: field.contents() for key, field in GGUFReader(file).fields.items()}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_model_from_the_file(name, written, tmp_path):
    directory, ours = written(name)
    file = export_gguf(directory, tmp_path / "model.gguf", "f32").file
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    kind = AutoModelForSeq2SeqLM if ours.config.is_encoder_decoder else AutoModelForCausalLM
    config = AutoConfig.from_pretrained(directory)
    theirs = kind.from_pretrained(tmp_path, gguf_file=file.name, config=config, dtype=torch.float32).eval()
    batch = {"input_ids": torch.randint(7, 300, (2, 20), generator=torch.Generator().manual_seed(1))}
    if ours.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :7]
    with torch.no_grad():
        mine, other = ours(**batch), theirs(**batch).logits
    scale = ours.config.logit_scale
    # The file has the scale of logits in the last norm, and transformers applies its own once more.
    assert (mine * scale - other).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tensor_type", FILE_TYPES)
def test_the_file_passes_its_check(name, tensor_type, written, tmp_path, monkeypatch):
    monkeypatch.setattr("mini_llm.export.llama_cpp.is_installed", lambda: False)
    directory, _ = written(name)
    done = export_gguf(directory, tmp_path / "model.gguf", tensor_type)
    check_gguf(directory, done.file)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(done.file).tensors}
    assert all(types[n] == "F32" for n in types if n.endswith(("norm.weight", ".bias", "rope_freqs.weight")))
    assert types["token_embd.weight"] == tensor_type.upper()


def test_the_largest_error_of_each_type_is_the_rounding_it_allows():
    values = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    values[0, :32], values[1] = 0, 1e-6
    for kind, _ in FILE_TYPES.values():
        back = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        share = (np.abs(back - values) / np.maximum(rounding(values, kind), 1e-30)).max()
        assert share <= 1
        assert kind is gguf.GGMLQuantizationType.F32 or share > 0.8


def test_rows_not_divisible_into_blocks_of_32_become_f16_with_a_message(tiny_tokenizer, tmp_path):
    save_model(make_model("qwen3", "causal", intermediate_size=88), tmp_path)
    save_tokenizer(tiny_tokenizer, tmp_path, "causal", 64)
    done = export_gguf(tmp_path, None, "q8_0")
    assert done.fallen_back == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert "F16 instead of Q8_0, because rows are not a multiple of 32: 2 (blk.0.ffn_down.weight" in str(done)
    assert done.file == tmp_path / f"{tmp_path.name}-q8_0.gguf"
    check_gguf(tmp_path, done.file)


def test_interleaved_pairs_give_the_same_attention_scores():
    config = ModelConfig(**COMMON, causal=True)
    heads, size = config.num_attention_heads, config.head_dim
    query, key, x = torch.randn(3, 64, 64).unbind()
    table = rotary_table(torch.arange(9), size, config.rope_theta)

    def scores(query, key, turn):
        q, k = (turn((x[:9] @ w.T).view(1, 9, heads, size).transpose(1, 2)) for w in (query, key))
        return q @ k.mT

    def turn_neighbours(x):
        # ggml's rotation of the `llama` architecture: pairs (0, 1), (2, 3), ...
        cos, sin = (t[:, : size // 2] for t in table)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

    expected = scores(query, key, lambda x: rotate(x, table))
    found = scores(interleave(query, heads), interleave(key, heads), turn_neighbours)
    assert torch.allclose(found, expected, atol=1e-3)


def test_rope_factors_divide_the_frequencies():
    config = ModelConfig(**COMMON, causal=True, rope_scaling={**LLAMA3, "original_max_position_embeddings": 512})
    angles = [rotary_table(torch.tensor([1]), 16, 10_000.0, scaling) for scaling in (None, config.rope_scaling)]
    plain, scaled = (torch.atan2(sin, cos)[0, :8] for cos, sin in angles)
    assert torch.allclose(plain / rope_factors(config), scaled, rtol=1e-4)
    assert rope_factors(config).unique().numel() > 2


@pytest.mark.parametrize(("name", "add_bos", "add_eos"), [("qwen3", True, False), ("t5", False, True)])
def test_the_vocabulary_has_the_settings_llama_cpp_needs(name, add_bos, add_eos, written, tiny_tokenizer, tmp_path):
    directory, _ = written(name)
    fields = fields_of(export_gguf(directory, tmp_path / "model.gguf").file)
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": 3}
    assert {key: fields[f"tokenizer.ggml.{key}_token_id"] for key in ids} == ids
    settings = (Keys.Tokenizer.MODEL, Keys.Tokenizer.ADD_PREFIX, Keys.Tokenizer.ADD_BOS, Keys.Tokenizer.ADD_EOS)
    assert [fields[key] for key in settings] == ["llama", False, add_bos, add_eos]
    tokens, types = fields[Keys.Tokenizer.LIST], fields[Keys.Tokenizer.TOKEN_TYPE]
    pieces = tiny_tokenizer.vocab_size
    assert tokens[:pieces] == [tiny_tokenizer.id_to_token(i) for i in range(pieces)]
    assert types[:4] == [TokenType.UNKNOWN, *[TokenType.CONTROL] * 3]
    assert types[tokens.index("<mask>")] == TokenType.CONTROL
    assert types.count(TokenType.BYTE) == 256
    assert types[pieces:] == [TokenType.UNUSED] * (VOCABULARY - pieces)
    assert len(fields[Keys.Tokenizer.SCORES]) == len(set(tokens)) == VOCABULARY


def test_ids_encoded_from_the_file_equal_our_tokenizer(written, tiny_tokenizer, tmp_path):
    directory, _ = written("qwen3")
    encoder = make_encoder(vocabulary_of(fields_of(export_gguf(directory, tmp_path / "model.gguf").file)))
    for text in hostile_strings().values():
        assert encoder.encode(text) == tiny_tokenizer.encode(text)


def test_a_token_that_llama_cpp_would_read_as_special_is_reported_without_failing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mini_llm.export.llama_cpp.is_installed", lambda: False)
    monkeypatch.setenv("COLUMNS", "300")
    tokenizer = train_sentencepiece(tmp_path)
    save_model(make_model("qwen3", "causal"), tmp_path)
    file = export_gguf(tmp_path).file
    encoder = make_encoder(vocabulary_of(fields_of(file)))
    assert encoder.encode("<s>") == [1]
    assert tokenizer.tokenize("<s>") == ["<s", ">"]
    check_gguf(tmp_path, file)
    assert "spell a special token's name" in capsys.readouterr().out


def test_a_byte_level_tokenizer_brings_its_merges(tmp_path, monkeypatch):
    monkeypatch.setattr("mini_llm.export.llama_cpp.is_installed", lambda: False)
    write_byte_level(tmp_path)
    save_model(make_model("gpt2", "causal", hidden_act="gelu_new"), tmp_path)
    file = export_gguf(tmp_path).file
    fields = fields_of(file)
    assert (fields[Keys.Tokenizer.MODEL], fields[Keys.Tokenizer.PRE]) == ("gpt2", "gpt-2")
    assert fields[Keys.Tokenizer.MERGES] and Keys.Tokenizer.SCORES not in fields
    assert fields[Keys.Tokenizer.TOKEN_TYPE][0] == TokenType.CONTROL
    assert fields[Keys.Tokenizer.ADD_BOS] is False
    check_gguf(tmp_path, file)


REFUSED = [
    ("bert", "masked", {"hidden_act": "gelu"}, "bert model: llama.cpp uses this family only for embeddings"),
    ("modernbert", "masked", {"sliding_window": 8, "local_rope_theta": 1e4}, "modernbert model: llama.cpp uses"),
    ("marian", "seq2seq", {"hidden_act": "relu"}, "marian model: llama.cpp has no architecture with sinusoidal"),
    ("qwen3", "classifier", {"id2label": {0: "a", 1: "b"}}, "qwen3 classifier: .* python -m finetune predict"),
    ("gpt2", "causal", {"hidden_act": "relu"}, "activation_function=relu .needs gelu_new."),
    ("llama", "causal", {"hidden_act": "gelu"}, "hidden_act=gelu .needs silu."),
    ("qwen3", "causal", {"attention_bias": True}, "attention_bias=True .needs False."),
    ("qwen3", "causal", {"rope_scaling": LLAMA3}, "rope_type=llama3 .needs default or linear."),
    (
        "qwen3",
        "causal",
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8},
        "layer_types=sliding_attention .needs full_attention.",
    ),
    ("t5", "seq2seq", {**GATED, "relative_max_distance": 64}, "relative_attention_max_distance=64 .needs 128."),
    ("t5", "seq2seq", {**GATED, "num_decoder_layers": 3}, "num_decoder_layers=3 .needs at most num_layers = 2."),
    (
        "t5",
        "seq2seq",
        {**GATED, "hidden_act": "silu"},
        "feed_forward_proj=silu, gated: True .needs relu or gated-gelu.",
    ),
]


@pytest.mark.parametrize(("family", "head", "changes", "cause"), REFUSED, ids=[f"{r[0]} {r[1]}" for r in REFUSED])
def test_models_that_llama_cpp_does_not_support_are_refused(family, head, changes, cause, tiny_tokenizer, tmp_path):
    save_model(make_model(family, head, **changes), tmp_path)
    save_tokenizer(tiny_tokenizer, tmp_path, "causal", 64)
    with pytest.raises(CheckpointError, match=cause):
        export_gguf(tmp_path)
    assert not list(tmp_path.glob("*gguf*"))


def run(*arguments, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        run_app(app, "export", [str(argument) for argument in arguments])
    output = capsys.readouterr()
    return end.value.code or 0, output.out + output.err


def test_the_command_line_reports_the_cause_in_its_exit_code(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mini_llm.export.llama_cpp.is_installed", lambda: False)
    directory, _ = written("qwen3")
    code, text = run("gguf", tmp_path / "nothing", capsys=capsys)
    assert code == 4 and "no such directory" in text
    code, text = run("gguf", directory, "--out", tmp_path / "none" / "a.gguf", capsys=capsys)
    assert code == 2 and "cannot write there" in text
    code, text = run("gguf", directory, "--type", "q4_0", capsys=capsys)
    assert code == 2 and "q8_0" in text
    file = tmp_path / "a.gguf"
    assert run("gguf", directory, "--out", file, "--type", "f32", capsys=capsys)[0] == 0
    assert run("check", directory, file, capsys=capsys)[0] == 0
    code, text = run("check", directory, tmp_path / "b.gguf", capsys=capsys)
    assert code == 4 and "no such file" in text


def test_a_changed_byte_and_a_truncated_file_are_detected(written, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mini_llm.export.llama_cpp.is_installed", lambda: False)
    monkeypatch.setenv("COLUMNS", "300")
    directory, _ = written("qwen3")
    file = export_gguf(directory, tmp_path / "model.gguf", "f32").file
    content, tensor = bytearray(file.read_bytes()), GGUFReader(file).tensors[5]
    content[tensor.data_offset + 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not the model of .*tensors"):
        check_gguf(directory, file)
    assert f"{tensor.name} differs" in capsys.readouterr().out
    for damaged in (content[: len(content) // 2], content[:30], b"GGUF", b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="not a GGUF file, or damaged"):
            check_gguf(directory, file)


def test_a_file_of_another_model_fails_the_check(written, tmp_path, monkeypatch):
    monkeypatch.setattr("mini_llm.export.llama_cpp.is_installed", lambda: False)
    file = export_gguf(written("llama")[0], tmp_path / "model.gguf").file
    with pytest.raises(CheckpointError, match="metadata, tensors"):
        check_gguf(written("gpt2")[0], file)


def test_weights_too_large_for_f16_keep_the_old_file(written, tmp_path, tiny_tokenizer):
    model = make_model("qwen3", "causal")
    with torch.no_grad():
        model.trunk.blocks[0].mlp.up_proj.weight[0, 0] = 1e5
    save_model(model, tmp_path)
    save_tokenizer(tiny_tokenizer, tmp_path, "causal", 64)
    file = tmp_path / "old.gguf"
    file.write_bytes(b"old")
    with pytest.raises(
        CheckpointError, match=r"blk.0.ffn_up.weight: contains 1e\+05, too large for F16; use --type bf16"
    ):
        export_gguf(tmp_path, file)
    assert file.read_bytes() == b"old" and len(list(tmp_path.glob("*gguf*"))) == 1
    export_gguf(tmp_path, file, "bf16")
    model.trunk.blocks[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    save_model(model, tmp_path)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        export_gguf(tmp_path, file, "f32")


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_generates_our_text(name, written, tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an optional extra")
    monkeypatch.setattr(check_text, "LENGTH", 24)
    directory, _ = written(name)
    check_gguf(directory, export_gguf(directory, tmp_path / "model.gguf", "f32").file)
