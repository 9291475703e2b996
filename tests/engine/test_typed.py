"""What is typed reaches a text setting unchanged: through make, the command line and YAML files."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune.config import FinetuneConfig
from generate.config import GenerateConfig
from mini_llm.engine.config import Config, flag_overrides, list_settings, load_config, parse_value
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.words import split_words
from mini_llm.engine.settings_page import choices
from mini_llm.tokenization.config import TokenizerConfig
from pretrain.config import PairsConfig, PretrainConfig
from tests.engine.typed import ROOT, TEXTS, random_texts

CLASSES = (TokenizerConfig, PretrainConfig, FinetuneConfig, GenerateConfig)
ALL = [*TEXTS, "null", *random_texts(300, 0)]


class Texts(Config):
    """Settings that are texts, in every way that the stages have them."""

    text: str = "text"
    optional: str | None = None
    pairs: PairsConfig = PairsConfig(path="p")
    corpus: TokenizerConfig = TokenizerConfig()


def text_keys(cls: type[Config]) -> list[str]:
    """Keys of `cls` that hold any text, with 0 for N."""
    found = [setting for setting in list_settings(cls) if setting.field.annotation in (str, str | None)]
    return [setting.key.replace(".N.", ".0.") for setting in found]


@pytest.mark.parametrize("cls", CLASSES[:3])
def test_every_text_setting_takes_the_characters(cls):
    keys = text_keys(cls)
    assert len(keys) >= 5
    for key in keys:
        assert [parse_value(cls, key, text) for text in ALL if text != "null"] == [t for t in ALL if t != "null"], key


@pytest.mark.parametrize("key", ["text", "optional", "pairs.source", "corpus.corpus.sources.0.text"])
def test_a_setting_holds_what_was_typed_as_key_and_value_and_as_a_flag(key):
    given = [("pairs.path", "p"), ("corpus.corpus.sources", "a.txt")]
    for text in ALL:
        for override in (*flag_overrides({key: text}), f"{key}={text}"):
            found = load_config(Texts, None, [*given, override])
            for part in key.split("."):
                found = found[int(part)] if part.isdigit() else getattr(found, part)
            assert found == (None if override == "optional=null" else text)


def test_a_list_of_one_text_is_that_text_unless_it_begins_like_yaml():
    for text in ALL:
        flag = load_config(PretrainConfig, None, flag_overrides({"corpus.sources": [text]}))
        assert [source.path for source in flag.corpus.sources] == [text]
        if not text.lstrip().startswith(("[", "{", "'", '"')):
            config = load_config(PretrainConfig, None, [f"corpus.sources={text}", f"tracking.tags={text}"])
            assert [config.corpus.sources[0].path] == config.tracking.tags == [text]


def test_null_is_no_value_where_the_setting_may_have_none():
    typed = ["optional=null", "text=null"]
    assert load_config(Texts, None, typed) == Texts(optional=None, text="null")
    assert load_config(Texts, None, ['optional="null"']).optional == "null"
    assert load_config(PretrainConfig, None, ["budget=null", "max_steps=None", "sizes.rope_theta=~"]).budget is None
    with pytest.raises(ConfigError, match="seed"):
        load_config(PretrainConfig, None, ["seed=null"])


def test_numbers_and_truth_values_are_read_by_their_type_not_by_yaml():
    typed = ["seed=012", "sample_bytes=20_000", "corpus.deduplicate=No", "character_coverage=.99", "vocab_size=64.0"]
    config = load_config(TokenizerConfig, None, typed)
    assert (config.seed, config.sample_bytes, config.corpus.deduplicate) == (12, 20_000, False)
    assert (config.character_coverage, config.vocab_size) == (0.99, 64)
    with pytest.raises(ConfigError, match=r"seed: .*'1:30'"):
        load_config(TokenizerConfig, None, ["seed=1:30"])


@pytest.mark.parametrize("cls", CLASSES)
def test_every_choice_can_be_typed(cls):
    for setting in list_settings(cls):
        for choice in choices(setting.field.annotation) if "N" not in setting.key else ():
            needed = ["pairs.path=p"] if setting.key == "pairs.on_null" else []
            found = load_config(cls, None, [f"{setting.key}={choice}", *needed])
            for part in setting.key.split("."):
                found = getattr(found, part)
            assert str(found).lower() == str(choice).lower(), setting.key


def test_a_yaml_file_keeps_the_characters_of_text_settings(tmp_path):
    plain = ["012", "1.10", "2026-11-29", "yes", "0x10", "1_000", "12:30:45", "1e3", ".inf", "~x"]
    path = tmp_path / "x.yaml"
    for text in plain:
        path.write_text(
            f"data: {{path: x.csv, label: {text}, unlabelled: [{text}]}}\nseed: 012\ntracking: {{group: null}}\n"
        )
        config = load_config(FinetuneConfig, path)
        assert (config.data.label, config.data.unlabelled, config.seed) == (text, [text], 12)
        assert config.tracking.group is None
    for text in ALL:
        path.write_text(yaml.safe_dump({"data": {"path": text, "label": text}}, allow_unicode=True), encoding="utf-8")
        data = load_config(FinetuneConfig, path, ["data.text=yes"]).data
        assert (data.path, data.label, data.text) == (text, text, "yes")


def test_settings_of_a_source_that_was_given_by_its_path():
    config = load_config(TokenizerConfig, None, [("corpus.sources", ["org/name"]), "corpus.sources.0.text=007"])
    assert [(s.path, s.text) for s in config.corpus.sources] == [("org/name", "007")]
    config = load_config(TokenizerConfig, None, ["corpus.sources=a.txt", "corpus.sources.0.text=b"])
    assert [(s.path, s.text) for s in config.corpus.sources] == [("a.txt", "b")]


def test_args_are_split_like_a_shell_does_but_expand_nothing():
    for seed in range(20):
        words = random_texts(5, seed)
        assert split_words(shlex.join(words)) == words
    several = 'corpus.sources=[{path: a.txt, weight: 2}, {path: "b ]/*.gz", text: don\'t}]'
    assert split_words(f"  {several} --x $5 *.txt\n") == [several, "--x", "$5", "*.txt"]
    for wrong in ("a 'b", "x=[a, b", '"'):
        with pytest.raises(ValueError, match="not closed"):
            split_words(wrong)


def shown(*arguments: str, **settings) -> dict:
    """What the command line of a stage gets; nothing is trained."""
    command = [sys.executable, ROOT / "tests" / "engine" / "typed.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_command_lines_take_the_characters():
    texts = [*TEXTS, *random_texts(50, 1)]
    first, *others = texts
    got = shown("pretrain", *(f"--data={text}" for text in texts), f"tracking.group={others[-1]}")
    assert [source["path"] for source in got["corpus"]["sources"]] == texts and got["tracking"]["group"] == others[-1]
    got = shown("tokenizer", *(word for text in texts if text[0] != "-" for word in ("--data", text)))
    assert [source["path"] for source in got["corpus"]["sources"]] == [text for text in texts if text[0] != "-"]
    got = shown("generate", "runs/x", "--- a/file.py", *(f"--stop={text}" for text in texts))
    assert got["prompt"] == "--- a/file.py" and set(texts) <= set(got["stop"])
    for label, text in zip(texts[::9], texts[4::9], strict=False):
        got = shown("finetune", "--data", first, f"data.label={label}", f"data.text={text}")["data"]
        assert (got["path"], got["label"], got["text"]) == (first, label, text)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with the Makefile, whose Python shows what the stages get."""
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, ready in (("requirements.txt", ".ready"), ("requirements-dev.txt", ".ready-dev")):
        shutil.copy(ROOT / name, tmp_path)
        shutil.copy(ROOT / name, tmp_path / ".venv" / ready)
    python, show = shlex.quote(sys.executable), shlex.quote(str(ROOT / "tests" / "engine" / "typed.py"))
    (binaries / "python").write_text(
        f"#!/bin/bash\nexport PYTHONPATH={shlex.quote(str(ROOT))}\ncase $2 in\n"
        f'tokenizer | pretrain | finetune | generate) exec {python} {show} "${{@:2}}" ;;\n'
        f'*) exec {python} "$@" ;;\nesac\n'
    )
    (binaries / "python").chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str, **variables: str) -> list[dict]:
    """What the stages get from `make` with these arguments and environment variables, in order."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**environment, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["012", "-x", "$(", "null", "- \n".join(TEXTS)])
def test_make_takes_the_characters(checkout, text):
    arguments = " ".join(f"--data={shlex.quote(each)}" for each in (*TEXTS, *random_texts(30, 2)))
    given = {"DATA": text, "PROMPT": text, "RUN": "012", "BUDGET": "5m", "MODEL": "gpt"}
    command = [f"{name}={value}" for name, value in given.items()]
    (pretrain,) = make(checkout, "pretrain", *command, f"ARGS={arguments} optim.lr=1e-3")
    assert [source["path"] for source in pretrain["corpus"]["sources"]] == [text, *TEXTS, *random_texts(30, 2)]
    assert (pretrain["run"], pretrain["budget"], pretrain["optim"]["lr"]) == ("012", "5m", 1e-3)
    # Through a second make, as in a pipeline, and from the environment.
    (checkout / "Makefile").write_text((ROOT / "Makefile").read_text() + "\nagain:\n\t@$(MAKE) generate\n")
    assert make(checkout, "again", f"PROMPT={text}")[0]["prompt"] == text
    assert make(checkout, "generate", PROMPT=text)[0]["prompt"] == text


@pytest.mark.slow
def test_make_names_a_run_as_typed(checkout):
    for name in ("1.10", "2026-11-29", "yes", "null", "\u65e5\u672c"):
        assert make(checkout, "tokenizer", f"RUN={name}")[0]["run"] == name


@pytest.mark.slow
def test_the_line_of_the_readme_with_several_sources_works_under_make(checkout):
    readme = (ROOT / "README.md").read_text()
    line = readme[readme.index("`ARGS='corpus.sources=") + 1 :].partition("`")[0]
    (got,) = make(checkout, "tokenizer", shlex.split(line)[0])
    found = [(source["path"], source["weight"], source["text"]) for source in got["corpus"]["sources"]]
    assert found == [("a.txt", 2.0, "text"), ("b/*.jsonl.gz", 1.0, "body")]


@pytest.mark.slow
def test_prompts_that_do_not_come_from_make_take_the_place_of_prompt(checkout):
    (checkout / "p.txt").write_text("a\n\nb\n")
    assert make(checkout, "generate", "ARGS=--file p.txt temperature=0")[0]["prompts"] == ["a", None, "b"]


@pytest.mark.slow
def test_sweeps_of_wandb_write_settings_as_options():
    got = shown("pretrain", "--optim.lr=0.01", "--max_steps=5", "--run=x", "--corpus.sources=x", "--clm_warmup=False")
    assert (got["optim"]["lr"], got["max_steps"], got["run"], got["clm_warmup"]) == (0.01, 5, "x", False)
    assert shown("generate", "runs/x", "abc", "--top_k=3", "--temperature=0")["top_k"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables, arguments, name",
    [
        ({}, [], None),
        ({"WANDB_RUN_ID": "abc"}, [], "gpt-abc"),
        ({"WANDB_RUN_ID": ""}, [], None),
        ({"WANDB_RUN_ID": "abc"}, ["--run", "mine"], "mine"),
        ({"WANDB_RUN_ID": "abc", "WANDB_SWEEP_ID": "s"}, ["--run", "mine"], "mine-abc"),
    ],
)
def test_a_trial_of_a_sweep_is_a_run_of_its_own(variables, arguments, name):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    assert shown("pretrain", *arguments, env={**environment, **variables})["run"] == name
