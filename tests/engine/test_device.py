"""The choice of device and precision."""

import pytest
import torch

from mini_llm.engine import device
from mini_llm.engine.device import bf16_time, resolve_precision


@pytest.mark.parametrize(
    ("in_hardware", "time", "expected"),
    [(True, 0.5, "bf16"), (True, 1.0, "bf16"), (True, 1.85, "fp32"), (False, 0.5, "fp32")],
)
def test_a_cpu_trains_in_bf16_only_where_it_has_it_and_it_is_fast(monkeypatch, in_hardware, time, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: in_hardware)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(device, "bf16_time", lambda: time)
    assert resolve_precision("auto", torch.device("cpu")) == expected
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"


def test_measuring_the_time_of_bf16_keeps_the_number_of_threads():
    threads = torch.get_num_threads()
    assert bf16_time() > 0
    assert torch.get_num_threads() == threads
