"""`python -m generate` on a model directory: equality with transformers, input, output, errors, interrupts."""

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest
import torch

from generate.__main__ import app
from generate.config import GenerateConfig
from generate.load import load_generator
from generate.prompts import valid_text
from mini_llm.engine.cli import run_app
from mini_llm.model import CausalLM, MaskedLM, ModelConfig, SequenceClassifier, save_model
from mini_llm.tokenization.save import save_tokenizer

CONTEXT = 64


@pytest.fixture(scope="module")
def runs(tiny_tokenizer, tmp_path_factory):
    """Tiny random models in runs/*/model: gpt and endless are causal, mlm is masked, labels is a classifier."""
    root = tmp_path_factory.mktemp("work") / "runs"
    shutil.copytree(tiny_tokenizer.directory, root / "tokenizer")
    sizes = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    bert = {"norm": "layernorm", "embedding_norm": True, "first_attention_norm": False, "qk_norm": False}
    for name, cls, changes in (
        ("gpt", CausalLM, {"causal": True}),
        ("endless", CausalLM, {"causal": True}),
        ("mlm", MaskedLM, {"causal": False, **bert}),
        ("labels", SequenceClassifier, {"causal": True, "id2label": {0: "a", 1: "b"}}),
    ):
        torch.manual_seed(0)
        model = cls(ModelConfig(**sizes, **changes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            if name == "endless":
                # The end token scores 0, and among 300 others one scores more.
                model.trunk.embed.weight[2] = 0
        save_model(model, root / name / "model")
        save_tokenizer(tiny_tokenizer, root / name / "model", "masked" if name == "mlm" else "causal")
    return root


@pytest.fixture
def call(runs, monkeypatch, capfdbinary):
    """call(*arguments, stdin=bytes) -> (exit code, standard output, standard error)"""
    monkeypatch.chdir(runs.parent)

    def run(*arguments, stdin=b""):
        for name, stream in (("stdin", io.BytesIO(stdin)), ("stdout", os.fdopen(os.dup(1), "wb"))):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding="utf-8", write_through=True))
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_app(app, "generate", [str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return ended.value.code or 0, out.decode(), err.decode()

    return run


def parse(output):
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("prompt", ["", "def ", "class Two:\n    pass", "caf\u00e9 <s> \u65e5"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_transformers(runs, prompt, penalty):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = runs / "gpt" / "model"
    config = GenerateConfig(temperature=0, max_new_tokens=CONTEXT - 20, repetition_penalty=penalty)
    generator = load_generator(directory, config)
    sample = generator.sample(prompt)
    text = "".join(generator.stream(sample))

    tokenizer = AutoTokenizer.from_pretrained(directory, split_special_tokens=True)
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0].tolist() == sample.prompt_ids
    output = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=config.max_new_tokens,
        suppress_tokens=generator.suppressed_ids,
        repetition_penalty=penalty,
    )[0, ids.size(1) :]
    assert output.tolist() == sample.ids
    their_text = tokenizer.decode(output, skip_special_tokens=True)
    # In a run of bytes with one that is not UTF-8, theirs gives up all; ours keeps the valid characters.
    assert their_text == text or "\ufffd" in their_text


def test_the_command_prints_the_text_of_the_library(call, runs):
    generator = load_generator(runs / "gpt", GenerateConfig(seed=5, max_new_tokens=30))
    text = "".join(generator.stream(generator.sample("def ")))
    assert call("runs/gpt", "def ", "--seed", 5, "--max-new-tokens", 30) == (0, text + "\n", "")


def test_samples_do_not_depend_on_their_number(call):
    options = ("runs/gpt", "def ", "--json", "--max-new-tokens", 10, "--temperature", 1)
    three = parse(call(*options, "--num-samples", 3)[1])
    assert [s["ids"] for s in parse(call(*options, "--num-samples", 2)[1])] == [s["ids"] for s in three[:2]]
    assert len({tuple(s["ids"]) for s in three}) == 3
    assert [s["sample"] for s in three] == [0, 1, 2]


def test_json_holds_text_ids_reason_and_speed(call):
    (sample,) = parse(call("runs/gpt", "def ", "--json", "--max-new-tokens", 5)[1])
    assert sample["prompt"] == "def " and not sample["text"].startswith("def ")
    assert len(sample["ids"]) <= 5 and sample["finish_reason"] in ("length", "end")
    assert sample["tokens_per_second"] > 0 and sample["window_slides"] == 0 and sample["seed"] == 0


def test_prompts_from_argument_and_standard_input_are_equal(call):
    options = ("--json", "--max-new-tokens", 5)
    expected = parse(call("runs/gpt", "a\nb", *options)[1])[0]["ids"]
    assert parse(call("runs/gpt", "-", *options, stdin=b"a\nb\n")[1])[0]["ids"] == expected
    assert parse(call("runs/gpt", *options, stdin=b"a\nb")[1])[0]["ids"] == expected
    assert parse(call("runs/gpt", *options, stdin=b"")[1])[0]["prompt"] == ""


def test_settings_by_name_are_flags(call):
    flags = call("runs/gpt", "def ", "--temperature", "0.5", "--seed", "3", "--stop", "e")
    assert call("runs/gpt", "def ", "temperature=0.5", "seed=3", "stop=[e]") == flags
    code, _, err = call("runs/gpt", "def ", "temprature=1")
    assert code == 2 and "did you mean temperature?" in err
    code, _, err = call("runs/gpt", "def", "f(x):")
    assert code == 2 and "quotes" in err


def test_echo_samples_and_speed(call):
    _, out, err = call("runs/gpt", "def ", "--echo", "--num-samples", 2, "--max-new-tokens", 4, "--verbose")
    assert out.startswith("--- 1 of 2 ---\ndef ") and "\n--- 2 of 2 ---\ndef " in out
    assert err.count("tokens/s") == 2


def test_stop_strings(call):
    (free,) = parse(call("runs/gpt", "x", "--json")[1])
    stop = free["text"][3:5]
    (stopped,) = parse(call("runs/gpt", "x", "--json", "--stop", "never in it", "--stop", stop)[1])
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == free["text"][: free["text"].index(stop)]


def test_a_long_prompt_and_a_full_context_are_reported(call):
    code, out, err = call("runs/gpt", "z " * 100, "--json", "--max-new-tokens", 5)
    (sample,) = parse(out)
    assert code == 0 and "longer than the context of 64" in err and sample["prompt_tokens"] == CONTEXT - 5
    _, out, err = call("runs/endless", "z", "--json", "--temperature", 0, "--max-new-tokens", 200)
    assert "was full" in err and parse(out)[0]["window_slides"] == 5 and parse(out)[0]["finish_reason"] == "length"


@pytest.mark.parametrize("compiled", ["--compile", "--no-compile"])
def test_prompts_of_a_file_are_answered_in_order_and_independently(call, tmp_path, compiled):
    file = tmp_path / "prompts.txt"
    file.write_text("def \n\nclass Two:\ndef \nx\n")
    options = ("--max-new-tokens", 12, "--temperature", 1, "--num-samples", 2, compiled)
    code, out, err = call("runs/gpt", "--file", file, *options)
    samples = parse(out)
    assert (code, err) == (0, "")
    assert [s["row"] for s in samples] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert samples[2:4] == [{"row": 2, "sample": None, "prompt": "", "text": None}] * 2, "a blank line keeps its place"
    del samples[2:4]
    assert [s["sample"] for s in samples] == [0, 1, 0, 1, 2, 3, 0, 1], "counted for each prompt by itself"
    assert [s["prompt"] for s in samples[::2]] == ["def ", "class Two:", "def ", "x"]
    lines = b"def \nclass Two:\ndef \nx\n"
    alone = parse(call("runs/gpt", "--interactive", "--json", *options, stdin=lines)[1])
    assert [s["ids"] for s in alone] == [s["ids"] for s in samples]
    assert samples[0]["ids"] != samples[4]["ids"]


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"caf\xe9\n"])
def test_a_file_without_prompts_is_named(call, tmp_path, content):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    code, out, err = call("runs/gpt", "--file", file)
    assert (code, out) == (3, "") and str(file) in err and "Traceback" not in err


def test_a_file_and_a_prompt_together_are_refused(call, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\n")
    code, _, err = call("runs/gpt", "def ", "--file", tmp_path / "prompts.txt")
    assert code == 2 and "leave PROMPT out" in err


def test_a_setting_after_a_file_is_not_read_as_a_prompt(call, tmp_path):
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    code, out, err = call("runs/gpt", "max_new_tokens=3", "temperature=0", "--file", tmp_path / "prompts.txt")
    assert code == 0, err
    assert [len(json.loads(line)["ids"]) <= 3 for line in out.splitlines()] == [True, True]


def test_int8_generates_text_and_requires_the_compiled_step(call, monkeypatch):
    options = ("--json", "--temperature", 0, "--max-new-tokens", 8)
    code, out, _ = call("runs/gpt", "def ", *options, "--dtype", "int8")
    assert code == 0 and len(parse(out)[0]["ids"]) == 8
    monkeypatch.setattr("mini_llm.engine.kernels.decode.load_library", lambda source: (None, "no C++ compiler found"))
    code, out, err = call("runs/gpt", "def ", *options, "--dtype", "int8")
    assert (code, out) == (2, "") and "no C++ compiler" in err and "--dtype" in err
    assert call("runs/gpt", "def ", *options)[0] == 0


def test_interactive_answers_line_by_line(call):
    options = ("--json", "--max-new-tokens", 4, "--temperature", 1)
    code, out, _ = call("runs/gpt", "--interactive", *options, stdin=b"def \nclass \ndef \n\n")
    first, second, third, fourth = parse(out)
    assert code == 0
    assert [s["sample"] for s in (first, second, third, fourth)] == [0, 0, 1, 0]
    assert first["ids"] == parse(call("runs/gpt", "def ", *options)[1])[0]["ids"] != third["ids"]
    assert fourth["prompt"] == "def " + third["text"], "an empty line continues"


@pytest.mark.parametrize(
    "flags",
    [
        *(("--temperature", v) for v in ("-1", "nan", "inf", "x")),
        *(("--top-p", v) for v in ("0", "1.5", "nan")),
        *(("--min-p", v) for v in ("-0.1", "1")),
        *(("--top-k", v) for v in ("-1", "1.5")),
        *(("--num-samples", "0"), ("--max-new-tokens", "0"), ("--repetition-penalty", "0"), ("--stop", "")),
        *(("--device", "cudda"), ("--device", "cuda:99"), ("--dtype", "int4")),
    ],
)
def test_a_wrong_flag_is_named(call, flags):
    code, out, err = call("runs/gpt", "def ", *flags)
    assert (code, out) == (2, "") and flags[0] in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("runs/gpd", 4, "no such directory. Did you mean runs/gpt?"),
        ("runs/tokenizer", 4, "a tokenizer, not a model. Did you mean runs/"),
        ("runs/gpt/model/config.json", 4, "a file"),
        ("runs", 4, "no config.json"),
        ("runs/mlm", 4, "masked language model (ModernBertForMaskedLM)"),
        ("runs/labels/model", 4, "python -m finetune predict runs/labels/model"),
    ],
)
def test_models_that_cannot_generate_are_refused(call, path, code, message):
    result, out, err = call(path, "def ")
    assert (result, out) == (code, "") and message in err and "Traceback" not in err


def test_bytes_that_are_not_utf8_are_refused(call):
    code, _, err = call("runs/gpt", stdin=b"abc\xff")
    assert code == 3 and "standard input: 1 bytes are not valid UTF-8, the first in line 1. " in err
    # An ASCII locale hands UTF-8 bytes over as lone surrogates.
    assert valid_text("caf\udcc3\udca9") == "caf\u00e9"
    code, _, err = call("runs/gpt", "abc\udcff")
    assert code == 2 and "UTF-8" in err


@pytest.mark.slow
def test_nothing_heavy_is_imported(runs):
    script = (
        "import sys; from generate.__main__ import app; assert 'torch' not in sys.modules, 'torch for --help'\n"
        f"app([{str(runs / 'gpt')!r}, 'x', '--max-new-tokens', '3'], standalone_mode=False)\n"
        "heavy = {'transformers', 'tokenizers', 'datasets', 'wandb', 'accelerate', 'deepspeed', 'pandas', 'sklearn'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "set()\n"


def test_help_is_fast_and_shows_examples():
    begin, command = os.times(), [sys.executable, "-m", "generate", "--help"]
    done, end = subprocess.run(command, capture_output=True, text=True), os.times()
    assert done.returncode == 0 and 'python -m generate runs/gpt "def' in done.stdout
    # Processor time: the wall time of a test depends on what else runs.
    assert end.children_user + end.children_system - begin.children_user - begin.children_system < 1.0


class Terminal:
    """`python -m generate` in a terminal of its own."""

    def __init__(self, *arguments):
        endless = ["--max-new-tokens", "100000000", "--temperature", "0"]
        self.child, self.handle = pty.fork()
        if self.child == 0:
            os.execv(sys.executable, [sys.executable, "-m", "generate", *map(str, arguments), *endless])
        self.seen = b""

    def read_until(self, text):
        """Wait for `text`, and take what came up to it."""
        self._wait(lambda: text in self.seen)
        self.seen = self.seen.partition(text)[2]

    def read_some(self):
        """Wait for the middle of an answer."""
        self._wait(lambda: len(self.seen) > 20)

    def _wait(self, condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.seen[-500:]
            if select.select([self.handle], [], [], 1)[0]:
                self.seen += os.read(self.handle, 65536)

    def exit_code(self):
        deadline = time.monotonic() + 60
        while not (ended := os.waitpid(self.child, os.WNOHANG))[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(ended[1])


@pytest.mark.slow
def test_interrupts_in_a_terminal(runs):
    """Ctrl-C ends only the current answer, Ctrl-D ends the loop with 0; without --interactive Ctrl-C exits with 130."""
    loop, single = Terminal(runs / "endless", "--interactive"), Terminal(runs / "endless", "abc")
    loop.read_until(b"Ctrl-D quits")
    for prompt in (b"abc", b""):
        loop.read_until(b"> ")
        os.write(loop.handle, prompt + b"\n")
        loop.read_until(b"\n")
        loop.read_some()
        os.write(loop.handle, b"\x03")
        loop.read_until(b"interrupted")
    loop.read_until(b"> ")
    os.write(loop.handle, b"\x04")
    assert loop.exit_code() == 0
    single.read_some()
    os.write(single.handle, b"\x03")
    assert single.exit_code() == 130
