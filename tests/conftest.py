"""Fixtures that several rooms use."""

import os
from collections.abc import Callable, Iterator

# Before torch: sets up OpenMP, as every command does.
import mini_llm  # noqa: F401

# isort: split
import pytest
import torch

from mini_llm.engine.kernels import build as library
from mini_llm.engine.kernels import load as kernels
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.tokenizer import Tokenizer
from tokenizer.sample import draw_sample
from tokenizer.train import train_model

TEXT = "def one(x):\n    return x + 1\n\n\nclass Two:\n    pass\n# caf\u00e9 \u2192 \U0001f600\n"


@pytest.fixture(autouse=True, scope="module")
def no_service_of_wandb() -> Iterator[None]:
    """Commands that later tests start must not look for the service process of W&B that this process had."""
    yield
    for name in [name for name in os.environ if name.endswith("WANDB_SERVICE")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Tokenizer:
    """A tokenizer of 330 tokens, as the tokenizer stage trains them, for models with a vocabulary of 384."""
    directory = tmp_path_factory.mktemp("tokenizer")
    model = train_model(TokenizerConfig(vocab_size=330), draw_sample([TEXT], 10_000, 0))
    (directory / "tokenizer.model").write_bytes(model)
    return Tokenizer.load(directory)


@pytest.fixture
def assert_parity(record_property) -> Callable[[str, str, str, float], None]:
    """Assert the largest difference from a reference and record it for `python -m benchmarks.parity`."""

    def note(family: str, reference: str, column: str, figure: float) -> None:
        record_property("parity", (family, reference, column, figure))
        assert figure <= 1e-5, (family, reference, column)

    return note


@pytest.fixture(params=["-mavx2 -mfma", "-mavx512f -mfma"])
def fewer_instructions(request, monkeypatch, tmp_path) -> Iterator[None]:
    """Compile the C++ sources as for a processor with only these instructions."""
    enough = ("AVX512",) if "avx512" in request.param else ("AVX2", "AVX512")
    if not torch.backends.cpu.get_cpu_capability().startswith(enough):
        pytest.skip("this processor has even fewer")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    others = [flag for flag in library.FLAGS if flag != "-march=native"]
    monkeypatch.setattr(library, "FLAGS", [*request.param.split(), *others])
    for loaded in (library.load_library, kernels.load_kernels):
        loaded.cache_clear()
    yield
    for loaded in (library.load_library, kernels.load_kernels):
        loaded.cache_clear()
