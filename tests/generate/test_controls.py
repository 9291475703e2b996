"""Controls of a text: beams equal transformers, grammars hold, choices and log-probabilities are those of the model."""

import json
import math
import re

import pytest
import torch

import mini_llm
from generate.__main__ import main
from generate.choices import rank_choices
from generate.config import GenerateConfig
from generate.decode import TextGenerator
from generate.load import load_generator
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.kernels.decode import CompiledStep
from mini_llm.model import CausalLM, save_model
from mini_llm.tokenization.save import save_tokenizer
from tests.byte_tokenizer import ByteTokenizer
from tests.models import decoder, randomized, tiny_model
from tests.other_models import save_model as save_other

PROMPT = "what a film"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "bc"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("controls") / "model"
    sizes = {"vocab_size": 384, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
    save_model(randomized(CausalLM(decoder(**sizes))), directory)
    save_tokenizer(tiny_tokenizer, directory, "causal", 64)
    return directory


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """others(kind, head) -> (directory, transformers' model and tokenizer), saved once."""
    saved = {}

    def get(kind, head="CausalLM"):
        if kind not in saved:
            directory = tmp_path_factory.mktemp("other")
            saved[kind] = (directory, *save_other(kind, directory, head))
        return saved[kind]

    return get


def written(generator, prompt=PROMPT, index=0):
    sample = generator.sample(prompt, index)
    assert "".join(generator.stream(sample)) == sample.text
    return sample


def command(capsys, *arguments):
    """(exit code, standard output, standard error) of the command line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


@pytest.mark.parametrize("length_penalty", [1.0, -1.5, 2.0])
@pytest.mark.parametrize("kind", ["gpt2", "llama2", "t5"])
@pytest.mark.parametrize("often", [False, True])
def test_beam_search_equals_transformers(others, kind, length_penalty, often):
    """often: many tokens end a text, so that texts of different lengths compete."""
    directory, theirs, auto = others(kind, "Seq2SeqLM" if kind == "t5" else "CausalLM")
    shared = {"num_beams": 4, "max_new_tokens": 7, "length_penalty": length_penalty}
    more = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
    ends = [*range(0, theirs.config.vocab_size, 9)] if often else [auto.eos_token_id]
    encoded = auto(PROMPT, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    rows = theirs.generate(
        **inputs, **shared, **more, do_sample=False, num_return_sequences=3, eos_token_id=ends, pad_token_id=ends[0]
    )
    start = 1 if kind == "t5" else encoded["input_ids"].shape[1]
    config = GenerateConfig(num_samples=3, **more, **shared)
    for compiled in (True, False):
        generator = load_generator(directory, config, "cpu", compiled=compiled)
        generator.end_ids = set(ends)
        generator.configure(config)
        for index, row in enumerate(rows[:, start:].tolist()):
            ids = written(generator, index=index).ids
            assert ids == row[: len(ids)] and set(row[len(ids) :]) <= {ends[0]}


def test_the_log_probability_of_a_beam_is_that_of_its_tokens(model):
    generator = load_generator(model, GenerateConfig(num_beams=3, num_samples=3, max_new_tokens=6), "cpu")
    best = [written(generator, "def ", index) for index in range(3)]
    sums = [sum(sample.logprobs) / len(sample.ids) for sample in best]
    assert sums == sorted(sums, reverse=True) and len({tuple(sample.ids) for sample in best}) == 3
    for sample in best:
        ids = torch.tensor([sample.prompt_ids + sample.ids])
        with torch.no_grad():
            rows = generator.model(ids)[0].log_softmax(-1)[len(sample.prompt_ids) - 1 : -1]
        expected = rows.gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs), expected, rtol=1e-4, atol=1e-4)


def test_a_beam_ends_before_a_stop_string(model):
    free = written(load_generator(model, GenerateConfig(num_beams=3, max_new_tokens=12), "cpu"), "def ")
    stop = free.text[2:4]
    sample = written(load_generator(model, GenerateConfig(num_beams=3, max_new_tokens=12, stop=[stop]), "cpu"), "def ")
    assert stop not in sample.text


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.0}, {"num_beams": 3}])
def test_a_text_has_the_minimum_length(settings):
    """A bias makes the end the most likely token by far."""
    model, tokenizer = tiny_model(), ByteTokenizer()
    with torch.no_grad():
        model.trunk.embed.weight[tokenizer.eos_id] = 0
    for least in (0, 1, 7):
        config = GenerateConfig(min_new_tokens=least, max_new_tokens=12, **settings)
        generator = TextGenerator(model, tokenizer, config, step=CompiledStep(model))
        generator.controls = generator.controls._replace(bias={(tokenizer.eos_id,): 100.0})
        sample = written(generator, "ab")
        assert len(sample.ids) == least + 1 and sample.finish_reason == "end"


def test_a_bias_forbids_and_forces_a_text_with_and_without_a_space():
    generator = TextGenerator(tiny_model(), ByteTokenizer(), GenerateConfig(max_new_tokens=20))
    free = written(generator).text
    letter = next(character for character in free if character.isascii() and character.isprintable())
    generator.configure(GenerateConfig(max_new_tokens=20, logit_bias={letter: -1000.0}))
    assert letter not in written(generator).text
    generator.configure(GenerateConfig(max_new_tokens=6, logit_bias={"z": 1000.0}))
    assert written(generator).text == "zzzzzz"
    generator.configure(GenerateConfig(max_new_tokens=6, logit_bias={"z": 1000.0, "zq": 3000.0}))
    assert written(generator).text == "zqzqzq"
    generator.configure(GenerateConfig(logit_bias={"a": 1.0}))
    assert generator.controls.bias == {(104,): 1.0, (39, 104): 1.0}


@pytest.mark.parametrize("kind", ["", "gpt2", "llama2", "qwen3", "unigram, bytes"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_text_follows_its_grammar(model, others, kind, temperature):
    directory = others(kind)[0] if kind else model
    pattern = r"[a-c]{2,6}-(\d\d|x) caf\u00e9"
    generator = load_generator(directory, GenerateConfig(temperature=temperature, regex=pattern), "cpu")
    texts = [written(generator, index=index).text for index in range(4)]
    assert all(re.fullmatch(pattern, text) for text in texts)
    generator.configure(GenerateConfig(temperature=temperature, json_schema=SCHEMA))
    for index in range(4):
        sample = written(generator, index=index)
        row = json.loads(sample.text)
        assert sample.finish_reason == "end"
        assert row.keys() == {"name", "size"} and row["name"] in ("a", "bc") and 0 <= row["size"] <= 99


def test_a_grammar_samples_from_the_model_among_what_it_allows(model):
    """The first token has the model's own proportions."""
    generator = load_generator(model, GenerateConfig(regex="[ab]", temperature=1.0, top_p=1.0), "cpu")
    texts = [written(generator, "def ", index).text for index in range(400)]
    _, logits = generator._open_window(generator.sample("def ").prompt_ids)
    # A letter is a token and a byte token.
    spellings = [generator.tokenizer.token_bytes(i) for i in range(330)]
    a, b = (sum(float(logits[i].exp()) for i in range(330) if spellings[i] == letter) for letter in (b"a", b"b"))
    share = a / (a + b)
    assert abs(texts.count("a") / 400 - share) < 4 * math.sqrt(share * (1 - share) / 400) + 1e-9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--regex", "[a-"), "--regex"),
        (("--json-schema", "{"), "not JSON"),
        (("--json-schema", "no/file.json"), "no/file.json"),
        (("--json-schema", '{"type": "nothing"}'), "--json-schema"),
        (("--regex", "a", "--json-schema", "{}"), "exclude each other"),
        (("--regex", "a", "--num-beams", "2"), "--num-beams"),
        (("--logit-bias", "abc"), "TEXT=NUMBER"),
        (("--num-beams", "2", "--num-samples", "3"), "beams"),
        (("--min-new-tokens", "9", "--max-new-tokens", "8"), "max_new_tokens"),
        (("--choices", "a"), "at least two"),
        (("--choices", "a,a"), "different"),
        (("--choices", "a,b", "--interactive"), "--choices"),
        (("--fill", "a <mask>"), "--fill"),
    ],
)
def test_a_wrong_control_is_named(model, capsys, flags, message):
    prompt = [] if "--interactive" in flags else ["def "]
    code, out, err = command(capsys, model, *prompt, *flags)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err


def direct(generator, prompt, choice):
    """The log-probability of a choice: the product of the conditional probabilities, without a cache."""
    before, _ = generator.frame
    start = [*before, *generator.tokenizer.encode(prompt)]
    ids = [*before, *generator.tokenizer.encode(prompt + choice)]
    assert ids[: len(start)] == start, "this test needs prompts that end with a token"
    with torch.no_grad():
        rows = generator.model(torch.tensor([ids]))[0].double().log_softmax(-1)
    return sum(float(rows[i - 1, ids[i]]) for i in range(len(start), len(ids)))


@pytest.mark.parametrize("kind", ["", "gpt2", "qwen3"])
def test_choices_have_the_probability_of_the_model(model, others, kind):
    generator = load_generator(others(kind)[0] if kind else model, GenerateConfig(), "cpu")
    choices = [" a", " film of two", "\u00e9", " x y"]
    ranked = rank_choices(generator, "what a film", choices)
    expected = {choice: direct(generator, "what a film", choice) for choice in choices}
    assert [choice.text for choice in ranked] == sorted(choices, key=lambda choice: -expected[choice])
    total = sum(map(math.exp, expected.values()))
    for choice in ranked:
        assert choice.logprob == pytest.approx(expected[choice.text], abs=1e-3)
        assert choice.probability == pytest.approx(math.exp(expected[choice.text]) / total, rel=1e-2)
    spaced = rank_choices(generator, "what a film ", ["a", "x y"])
    assert spaced[0].logprob == pytest.approx(expected[f" {spaced[0].text}"], abs=1e-3), "the space joins the choice"


def test_choices_of_an_encoder_decoder_equal_its_loss(others):
    directory, theirs, auto = others("t5", "Seq2SeqLM")
    generator = load_generator(directory, GenerateConfig(), "cpu")
    for choice in rank_choices(generator, PROMPT, ["good film", "dull"]):
        labels = auto(choice.text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            loss = theirs(input_ids=auto(PROMPT, return_tensors="pt").input_ids, labels=labels).loss
        assert choice.logprob == pytest.approx(-float(loss) * labels.numel(), abs=1e-3)


def test_choices_longer_than_the_context_keep_the_end_of_the_prompt(model):
    generator = load_generator(model, GenerateConfig(), "cpu")
    assert len(rank_choices(generator, "z " * 100, ["a", "b"])) == 2
    with pytest.raises(ConfigError, match="context of 64"):
        rank_choices(generator, "z", ["\u00e9" * 100, "b"])


def test_the_command_prints_choices(model, capsys, tmp_path):
    code, out, _ = command(capsys, model, "def ", "--choices", 'a,"b, c"')
    rows = [line.split(None, 1) for line in out.splitlines()]
    assert code == 0 and {row[1] for row in rows} == {"a", "b, c"}
    assert sum(float(row[0]) for row in rows) == pytest.approx(1, abs=2e-4)
    (tmp_path / "prompts.txt").write_text("def \n\nx\n")
    code, out, _ = command(capsys, model, "--file", tmp_path / "prompts.txt", "--choices", "a,b")
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["row"] for row in found] == [1, 2, 3] and found[1]["choice"] is None
    assert found[0]["choice"] == found[0]["choices"][0]["text"]


def test_the_command_takes_every_control(model, capsys):
    flags = ["--typical-p", 0.9, "--presence-penalty", 0.5, "--frequency-penalty", 0.2, "--no-repeat-ngram-size", 3]
    flags += [
        "--logit-bias",
        "a=1",
        "--logit-bias",
        "b==-2",
        "--min-new-tokens",
        3,
        "--max-new-tokens",
        5,
        "--logprobs",
    ]
    code, out, _ = command(capsys, model, "def ", "--json", *flags)
    row = json.loads(out)
    assert code == 0 and len(row["logprobs"]) == len(row["ids"]) and row["logprob"] == sum(row["logprobs"])
    code, out, _ = command(capsys, model, "def ", "--json", "--num-beams", 3, "--num-samples", 2, "--max-new-tokens", 4)
    first, second = map(json.loads, out.splitlines())
    assert code == 0 and first["logprob"] / len(first["ids"]) > second["logprob"] / len(second["ids"])


def test_the_python_interface_takes_the_controls(model):
    generator = mini_llm.load(model)
    assert re.fullmatch("[ab]+c", generator.generate("x", regex="[ab]{1,5}c"))
    assert json.loads(generator.generate("x", json_schema=SCHEMA)).keys() == {"name", "size"}
    assert (
        generator.generate("x", num_beams=3, max_new_tokens=4)
        == generator.generate(["x", "y"], num_beams=3, max_new_tokens=4)[0]
    )
