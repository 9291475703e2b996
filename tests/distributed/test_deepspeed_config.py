"""DeepSpeed's configuration: our settings as its keys, merged with a user's file; contradictions show both values."""

import json

import pytest

from mini_llm.engine.distributed.deepspeed_config import deepspeed_config
from mini_llm.engine.distributed.processes import zero_stage
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.settings import RuntimeConfig


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (
        "USE_DEEPSPEED",
        "DEEPSPEED_ZERO_STAGE",
        "DEEPSPEED_CONFIG_FILE",
        "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    ):
        monkeypatch.delenv(f"ACCELERATE_{name}", raising=False)


@pytest.fixture
def file(tmp_path):
    """Writes a configuration and gives its path."""

    def write(config) -> str:
        path = tmp_path / "ds.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return path

    return write


def effective(path=None, **changes):
    fields = {"stage": 2, "precision": "bf16", "accumulation": 4, "micro_batch_size": 8, "max_grad_norm": 0.5}
    return deepspeed_config(**{**fields, **changes}, ranks=2, path=path)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_our_settings_become_deepspeed_keys(stage):
    config = effective(stage=stage)
    assert config["train_batch_size"] == 8 * 4 * 2
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 4
    assert "fp16" not in config and "bf16" not in config
    assert config["zero_optimization"]["stage"] == stage
    assert "optimizer" not in config and "scheduler" not in config


def test_bf16_is_autocast_unless_the_file_enables_deepspeeds_own(file):
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert effective()["torch_autocast"] == autocast
    own = effective(file({"bf16": {"enabled": True}}))
    assert own["bf16"] == {"enabled": True} and "torch_autocast" not in own
    assert effective(precision="fp16")["fp16"] == {"enabled": True}
    assert not {"bf16", "fp16", "torch_autocast"} & set(effective(precision="fp32"))


def test_deepspeeds_defaults_differ_from_what_we_write():
    """By default DeepSpeed clips at 1, accumulates in the model's dtype and saves no 16-bit weights under ZeRO-3."""
    assert effective(max_grad_norm=0.0)["gradient_clipping"] == 0.0
    assert effective()["data_types"]["grad_accum_dtype"] == "fp32"
    assert effective(stage=3)["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert effective()["zero_force_ds_cpu_optimizer"] is False


def test_a_users_file_is_merged_under_ours(file):
    theirs = {
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "torch_autocast": {"enabled": "auto"},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale_window": 100},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000, "sub_group_size": "auto"},
        "wall_clock_breakdown": True,
    }
    config = effective(file(theirs))
    assert config["zero_optimization"]["overlap_comm"] is True
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["wall_clock_breakdown"] is True
    ours = effective()
    assert {key: config[key] for key in ours if key != "zero_optimization"} == {
        key: value for key, value in ours.items() if key != "zero_optimization"
    }
    assert '"auto"' not in json.dumps(config)
    assert config["fp16"] == {"enabled": False, "loss_scale_window": 100}


CONTRADICTIONS = [
    ("train_batch_size", {"train_batch_size": 32}, "32", "64"),
    ("train_micro_batch_size_per_gpu", {"train_micro_batch_size_per_gpu": 3}, "3", "8"),
    ("gradient_accumulation_steps", {"gradient_accumulation_steps": 2}, "2", "4"),
    ("gradient_clipping", {"gradient_clipping": 1.0}, "1.0", "0.5"),
    ("zero_optimization.stage", {"zero_optimization": {"stage": 3}}, "3", "2"),
    ("torch_autocast.enabled", {"torch_autocast": {"enabled": False}}, "False", "True"),
    ("fp16.enabled", {"fp16": {"enabled": True}}, "True", "False"),
    ("data_types.grad_accum_dtype", {"data_types": {"grad_accum_dtype": "bf16"}}, "'bf16'", "'fp32'"),
    ("zero_force_ds_cpu_optimizer", {"zero_force_ds_cpu_optimizer": True}, "True", "False"),
]


@pytest.mark.parametrize("key, theirs, said, expected", CONTRADICTIONS, ids=[row[0] for row in CONTRADICTIONS])
def test_a_contradiction_shows_both_values(file, key, theirs, said, expected):
    path = file(theirs)
    with pytest.raises(ConfigError) as error:
        effective(path)
    assert str(path) in str(error.value)
    assert f"{key} is {said}, this run has {expected}" in str(error.value)


def test_another_precision_is_a_contradiction(file):
    for section in ("bf16", "torch_autocast"):
        with pytest.raises(ConfigError, match=f"{section}.enabled is True, this run has False"):
            effective(file({section: {"enabled": True}}), precision="fp32")


def test_every_contradiction_is_named_at_once(file):
    with pytest.raises(ConfigError, match=r"(?s)train_batch_size.*gradient_clipping"):
        effective(file({"train_batch_size": 1, "gradient_clipping": 3}))


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ({"zero_optimization": 2}, "zero_optimization"),
        ({"optimizer": {"type": "Muon"}}, "optim"),
        ({"scheduler": {"type": "WarmupLR"}}, "schedule"),
    ],
)
def test_an_unusable_file_is_an_error(file, content, message):
    with pytest.raises(ConfigError, match=message):
        effective(file(content))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        zero_stage(RuntimeConfig(deepspeed=str(tmp_path / "none.json")))


def test_the_file_may_name_the_stage_or_omit_it(file, monkeypatch):
    assert zero_stage(RuntimeConfig()) is None
    path = str(file({"zero_optimization": {"stage": 3}}))
    assert zero_stage(RuntimeConfig(deepspeed=path)) == 3
    assert zero_stage(RuntimeConfig(deepspeed=path, zero_stage=3)) == 3
    assert zero_stage(RuntimeConfig(deepspeed=str(file({"zero_optimization": {"stage": "auto"}})), zero_stage=1)) == 1
    assert zero_stage(RuntimeConfig(deepspeed=str(file({})))) == 2
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file({"zero_optimization": {"stage": 1}})))
    assert zero_stage(RuntimeConfig()) == 1


def test_conflicting_stages_are_an_error_that_shows_both(file, monkeypatch):
    path = str(file({"zero_optimization": {"stage": 3}}))
    for stage in (0, 1):
        with pytest.raises(ConfigError, match=f"runtime.zero_stage says {stage}.*says 3"):
            zero_stage(RuntimeConfig(deepspeed=path, zero_stage=stage))
    with pytest.raises(ConfigError, match="expected 1, 2 or 3"):
        zero_stage(RuntimeConfig(deepspeed=str(file({"zero_optimization": {"stage": 0}}))))
    with pytest.raises(ConfigError, match="without DeepSpeed"):
        zero_stage(RuntimeConfig(deepspeed=str(file({})), zero_stage=0))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(ConfigError, match=r"zero_stage says 1.*launcher's configuration says 2"):
        zero_stage(RuntimeConfig(zero_stage=1))


def test_offloading_requested_by_the_launcher_is_kept(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu")
    assert effective(stage=3)["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
