"""Settings: described, listed, suggested, renamed, completed; and the resolved configuration that a run writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from finetune.config import FinetuneConfig
from generate.config import GenerateConfig
from mini_llm.__main__ import all_settings
from mini_llm.engine.cli import parse_duration
from mini_llm.engine.config import build_config, find_key, list_settings, load_config
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.run.directory import RunDirectory
from mini_llm.engine.run.key_names import COMMON_NAMES, RENAMED_KEYS
from mini_llm.engine.schedule import Schedule
from mini_llm.engine.settings import HARMLESS, ScheduleConfig
from mini_llm.engine.settings_page import complete_setting
from mini_llm.tokenization.config import TokenizerConfig
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "tokenizer": TokenizerConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "generate": GenerateConfig,
}
# What makes each stage read its settings: generate takes a model and a prompt first.
FIRST = {"generate": ["runs/gpt", "prompt"]}


def run(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **variables}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("stage", CLASSES)
def test_every_setting_has_a_description(stage):
    for setting in list_settings(CLASSES[stage]):
        text = setting.field.description or ""
        assert re.match(r"\S.*[.)]$", text), f"{stage}: {setting.key}: {text!r}"
        assert text.isascii() and len(text) <= 170, setting.key


@pytest.mark.slow
@pytest.mark.parametrize("stage", CLASSES)
def test_help_lists_every_key_within_80_columns(stage):
    shown = run(stage, "-h")
    assert shown.returncode == 0 and shown.stdout == run(stage, "--help").stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    words = shown.stdout.split()
    for setting in list_settings(CLASSES[stage]):
        assert setting.key in words, setting.key


@pytest.mark.slow
@pytest.mark.parametrize("stage", CLASSES)
def test_a_configuration_error_does_not_import_torch(stage):
    arguments = [stage, *FIRST.get(stage, []), "no_such_key=1"]
    program = f"""
import runpy, sys
sys.argv = {arguments!r}
try:
    runpy.run_module({stage!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 2, end.code
assert not {{"torch", "transformers", "accelerate"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unknown key 'no_such_key'" in done.stderr


def test_the_settings_page_is_current():
    """If it is not: python -m mini_llm settings > docs/settings.md."""
    assert (ROOT / "docs" / "settings.md").read_text() == all_settings()


@pytest.mark.slow
@pytest.mark.parametrize("command", [*CLASSES, "mini_llm"])
def test_version(command):
    shown = run(command, "--version")
    assert shown.returncode == 0 and re.fullmatch(r"mini-llm \d+\.\d+\.\d+\n", shown.stdout)


@pytest.mark.parametrize(
    "cls, key, meant",
    [
        (PretrainConfig, "lr", "optim.lr"),
        (PretrainConfig, "learning_rate", "optim.lr"),
        (PretrainConfig, "optimizer.lr", "optim.lr"),
        (PretrainConfig, "optim.lrr", "optim.lr"),
        (PretrainConfig, "batch_size", "global_batch_size"),
        (PretrainConfig, "per_device_train_batch_size", "micro_batch_size"),
        (PretrainConfig, "epochs", "max_epochs"),
        (PretrainConfig, "num_train_epochs", "max_epochs"),
        (PretrainConfig, "warmup", "schedule.warmup_steps"),
        (PretrainConfig, "block_size", "sizes.max_position_embeddings"),
        (PretrainConfig, "n_layer", "sizes.num_hidden_layers"),
        (PretrainConfig, "n_head", "sizes.num_attention_heads"),
        (PretrainConfig, "n_embd", "sizes.hidden_size"),
        (PretrainConfig, "dropout", "sizes.dropout"),
        (PretrainConfig, "bf16", "runtime.precision=bf16"),
        (PretrainConfig, "output_dir", "run"),
        (PretrainConfig, "data", "corpus.sources"),
        (FinetuneConfig, "global_batch_size", "batch_size"),
        (FinetuneConfig, "num_train_epochs", "epochs"),
        (FinetuneConfig, "max_seq_len", "data.max_length"),
        (FinetuneConfig, "dataset", "data.path"),
        (GenerateConfig, "max_tokens", "max_new_tokens"),
        (TokenizerConfig, "vocab_sise", "vocab_size"),
    ],
)
def test_an_unknown_key_suggests_the_right_one(cls, key, meant):
    with pytest.raises(ConfigError, match=re.escape(f"did you mean {meant}?")):
        load_config(cls, overrides=[f"{key}=1"])


def test_every_common_name_leads_to_a_key():
    keys = {setting.key for cls in CLASSES.values() for setting in list_settings(cls)}
    for name, meant in COMMON_NAMES.items():
        assert {key.partition("=")[0] for key in meant} <= keys, name
    assert set(RENAMED_KEYS.values()) <= keys
    assert not find_key(PretrainConfig, "zzz")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, advice",
    [
        (["pretrain", "--batch-size", "8"], "global_batch_size=8"),
        (["pretrain", "--lr=1e-3"], "optim.lr=1e-3"),
        (["pretrain", "plan", "--lr", "1e-3"], "optim.lr=1e-3"),
        (["pretrain", "--epochs"], "max_epochs=VALUE"),
        (["finetune", "--batch-size", "8"], "batch_size=8"),
        (["finetune", "--fp16"], "runtime.precision=fp16"),
        (["tokenizer", "--vocab-size", "512"], "vocab_size=512"),
    ],
)
def test_an_option_that_is_a_setting_says_what_to_type(arguments, advice):
    done = run(*arguments)
    assert done.returncode == 2 and f" {advice} " in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "override, message",
    [
        ("schedule.decay_fraction=0.5", "is now schedule.decay_ratio; schedule.kind=linear is now schedule.kind=wsd"),
        ("schedule.min_ratio=0.1", "is now schedule.min_lr_ratio"),
        ("checkpoint=gathered", "checkpoint=gathered is now checkpoint=full"),
        ("keep=best", "keep=best is now load_best=true"),
        ("keep=last", "keep=last is now load_best=false"),
        ("causal_start=false", "is now clm_warmup"),
        ("embeddings=random", "is now init_embeddings"),
        ("optim=adamw", "optim is a section of keys, not a value; set optim.name"),
        ("budget=5x", "budget: invalid duration '5x': use 30s, 10m or 4h"),
        ("runtime.hang_timeout=soon", "runtime.hang_timeout: invalid duration 'soon'"),
    ],
)
def test_what_is_wrong_with_a_setting(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(PretrainConfig, overrides=[override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_durations():
    assert [parse_duration(text) for text in ("30s", "10m", "4h", "2d", "90")] == [30, 600, 14400, 172800, 90]


def test_linear_decays_from_the_peak_after_the_warm_up():
    schedule = Schedule(ScheduleConfig(kind="linear", warmup_steps=10, min_lr_ratio=0.1), 110)
    assert [schedule.factor(step) for step in (0, 10, 110)] == pytest.approx([1 / 11, 1.0, 0.1])
    assert schedule.factor(60) == pytest.approx(0.55)
    assert not schedule.falling(9) and schedule.falling(10) and schedule.decay_start == 10
    schedule.retotal(60, 80)
    assert [schedule.factor(step) for step in (59, 60)] == pytest.approx([0.559, 0.55])
    assert schedule.factor(70) == pytest.approx(0.325) and schedule.factor(80) == pytest.approx(0.1)


def test_wsd_stays_at_the_peak_then_falls():
    schedule = Schedule(ScheduleConfig(kind="wsd", warmup_steps=10, decay_ratio=0.25), 100)
    assert {schedule.factor(step) for step in range(10, 76)} == {1.0}
    assert schedule.factor(76) < 1 and schedule.factor(100) == 0


@pytest.mark.parametrize(
    "typed, completions",
    [
        ("glob", ["global_batch_size="]),
        ("sched", [f"schedule.{name}=" for name in ("kind", "warmup_steps", "decay_ratio", "min_lr_ratio")]),
        ("runtime.prec", ["runtime.precision="]),
        ("schedule.kind=", ["schedule.kind=wsd", "schedule.kind=linear", "schedule.kind=cosine"]),
        ("load_best=f", ["load_best=false"]),
        ("corpus.sources.0.t", ["corpus.sources.0.text="]),
        ("zzz=", []),
    ],
)
def test_completion_of_settings(typed, completions):
    assert complete_setting(PretrainConfig, typed) == completions


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, wanted",
    [
        ("python -m pre", ["pretrain "]),
        ("python -m pretrain pl", ["plan "]),
        ("python -m pretrain --model ber", ["bert "]),
        ("python -m pretrain optim.muon", ["optim.muon_lr="]),
        ("python -m pretrain schedule.kind=w", ["wsd "]),
        ("python -m mini_llm tok", ["tokenizer "]),
        ("python -m mini_llm finetune data.label_s", ["data.label_separator="]),
        ("python -m scoring dri", ["drift "]),
        ("python -m mini_llm do", ["doctor "]),
        ("python -m mini_llm runs li", ["lineage "]),
        ("python -m scoring compare --quest", ["--questions "]),
        ("make test-f", ["test-fast "]),
        ("make pretrain BUD", ["BUDGET="]),
        ("make pretrain MODEL=ber", ["bert "]),
    ],
)
def test_completion_in_bash(line, wanted):
    function = "_mini_llm_make" if line.startswith("make") else "_mini_llm"
    script = f"""
source configs/completion.bash
python() {{ "{sys.executable}" "$@"; }}
COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
{function}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == wanted


# The configuration of a run

OLD = {
    "checkpoint": "gathered",
    "keep": "best",
    "schedule": {"kind": "linear", "warmup_steps": 10, "decay_fraction": 0.5, "min_ratio": 0.0},
    "causal_start": True,
    "embeddings": "bigrams",
}


def write_old_run(path: Path, **changes: object) -> dict:
    """A run directory as an earlier release left it: no requested.yaml, and the old names in config.yaml."""
    tree = PretrainConfig().model_dump(mode="json")
    for key in ("load_best", "clm_warmup", "init_embeddings"):
        del tree[key]
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({**tree, **OLD, **changes}))
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    return PretrainConfig().model_dump(mode="json")


def test_a_run_of_an_earlier_release_resumes_under_the_new_names(tmp_path):
    tree = write_old_run(tmp_path / "run")
    with RunDirectory(tmp_path / "run") as run:
        assert run.compare_config(tree, HARMLESS) == []
        assert build_config(PretrainConfig, run.requested(), "run") == PretrainConfig()
        with pytest.raises(ConfigError, match=r'schedule\.kind: "wsd" -> "linear"'):
            run.compare_config({**tree, "schedule": {**tree["schedule"], "kind": "linear"}}, HARMLESS)
        with pytest.raises(ConfigError, match="load_best: true -> false"):
            run.compare_config({**tree, "load_best": False}, HARMLESS)


def test_todays_linear_schedule_is_not_taken_for_that_of_an_earlier_release(tmp_path):
    tree = PretrainConfig(schedule=ScheduleConfig(kind="linear")).model_dump(mode="json")
    with RunDirectory(tmp_path / "run") as run:
        run.record(tree)
        assert run.requested()["schedule"]["kind"] == "linear" and run.compare_config(tree) == []


def test_requesting_what_the_run_has_chosen_is_no_change(tmp_path):
    tree = PretrainConfig().model_dump(mode="json")
    with RunDirectory(tmp_path / "run") as run:
        run.record(tree)
        run.resolve({"global_batch_size": 32, "micro_batch_size": 8})
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
        used = yaml.safe_load((run.path / "config.yaml").read_text())
        assert used["global_batch_size"] == 32 and run.requested() == tree
        assert run.compare_config(tree) == run.compare_config(used) == []
        again = run.as_requested(used, HARMLESS)
        assert again == {**tree, "micro_batch_size": 8}
        with pytest.raises(ConfigError, match="global_batch_size: null -> 64"):
            run.compare_config({**tree, "global_batch_size": 64})


def wandb_config(directory: Path) -> dict:
    """The configuration in the offline files of the run's only launch, with later updates."""
    import wandb

    (fragment,) = (directory / "wandb").glob("offline-run-*")
    core = Path(wandb.__file__).parent / "bin" / "wandb-core"
    command = [core, "leet", "inspect", "--no-observability", "--json", "--run-file", *fragment.glob("*.wandb")]
    done = subprocess.run([*command, fragment], capture_output=True, text=True, check=True)
    found: dict = {}
    for record in map(json.loads, done.stdout.splitlines()):
        part = record["run"] if record["type"] == "run" else record if record["type"] == "config" else {}
        found |= part.get("config", {}).get("update", {})
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A tiny GPT and a classifier, with W&B offline, and sizes, batches and learning rates left open."""
    from finetune.run import finetune
    from pretrain.run import pretrain

    folder = tmp_path_factory.mktemp("settings")
    text = [f"the {'cat' if i % 2 else 'dog'} of number {i} sleeps on mat {i * i % 97}." for i in range(400)]
    (folder / "text.txt").write_text("\n".join(text))
    rows = "\n".join(f"{line},{'cat' if ' cat ' in line else 'dog'}" for line in text[:80])
    (folder / "labels.csv").write_text(f"text,label\n{rows}\n")
    common = {"budget": "5s", "tracking": {"wandb": "offline"}, "runtime": {"device": "cpu"}}
    # Accelerate keeps the precision of the first run of a process. These runs leave it open, other tests use fp32.
    AcceleratorState._reset_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MINI_LLM_WANDB"))]:
            patch.delenv(name)
        corpus = {"sources": "text.txt"}
        pretrain(PretrainConfig(run="gpt", corpus=corpus, max_steps=2, init_embeddings="random", **common))
        finetune(FinetuneConfig(run="classifier", model="runs/gpt", data={"path": "labels.csv"}, max_steps=2, **common))
    AcceleratorState._reset_state()
    return folder / "runs"


NAMES = {
    "gpt": [
        *("run", "tokenizer", "vocab_size", "global_batch_size", "micro_batch_size", "max_steps", "evaluate_every"),
        *("save_every", "sizes.hidden_size", "sizes.num_hidden_layers", "sizes.num_attention_heads", "sizes.head_dim"),
        *("sizes.num_key_value_heads", "sizes.intermediate_size", "sizes.max_position_embeddings", "sizes.rope_theta"),
        *("sizes.tie_word_embeddings", "optim.embedding_lr", "corpus.validation_fraction"),
    ],
    "classifier": [
        *("run", "micro_batch_size", "max_steps", "evaluate_every", "save_every", "data.max_length", "optim.lr"),
        "optim.embedding_lr",
    ],
}
NO_AUTO = {
    "gpt": ["runtime.precision", "runtime.compile", "optim.name", "corpus.split"],
    "classifier": ["runtime.precision", "runtime.compile", "optim.name"],
}


def value(tree: dict, key: str) -> object:
    for part in key.split("."):
        tree = tree[part]
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_run_records_the_values_that_it_used(runs, name):
    used = yaml.safe_load((runs / name / "config.yaml").read_text())
    for tree in (used, wandb_config(runs / name)):
        assert [key for key in NAMES[name] if value(tree, key) is None] == []
        assert [key for key in NO_AUTO[name] if value(tree, key) == "auto"] == []
    requested = yaml.safe_load((runs / name / "requested.yaml").read_text())
    assert requested["micro_batch_size"] is None and requested["runtime"]["precision"] == "auto"


@pytest.mark.slow
def test_the_recorded_configuration_is_one_of_the_same_run(runs):
    """config.yaml can be given to the stage again, and the model has the sizes that it names."""
    config = load_config(PretrainConfig, runs / "gpt" / "config.yaml")
    model = json.loads((runs / "gpt" / "model" / "config.json").read_text())
    assert model["hidden_size"] == config.sizes.hidden_size and model["head_dim"] == config.sizes.head_dim
    done = run("pretrain", "runs/gpt/config.yaml", folder=runs.parent)
    assert done.returncode == 0 and "Nothing to do" in done.stderr
    tokenizer = load_config(TokenizerConfig, runs / "tokenizer-text" / "config.yaml")
    assert tokenizer.vocab_size == config.vocab_size
