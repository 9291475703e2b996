"""Run llama.cpp through llama-cpp-python: tokenize a text, and continue it greedily."""

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mini_llm.engine.errors import CheckpointError

GGML_TYPE_F32 = 0  # for keys and values, which llama.cpp stores in F16 by default


def is_installed() -> bool:
    """Return whether llama-cpp-python is installed, without importing it."""
    return find_spec("llama_cpp") is not None


class LlamaCpp:
    """A GGUF file loaded in llama.cpp with an fp32 cache of `context` positions. Raises CheckpointError on failure."""

    def __init__(self, file: Path, context: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        try:
            # One batch holds the whole context, since an encoder reads its text at once.
            self._llama = llama_cpp.Llama(
                str(file),
                n_ctx=context,
                n_batch=context,
                n_ubatch=context,
                type_k=GGML_TYPE_F32,
                type_v=GGML_TYPE_F32,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{file}: llama.cpp cannot load it ({error}). For details run: llama-cli -m {file} -p a -n 1"
            ) from None
        self._context = self._llama._ctx.ctx
        self._model = self._llama._model.model

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Adds nothing; names of control tokens are plain text."""
        return self._llama.tokenize(text.encode(), add_bos=False, special=False) if text else []

    def frame(self, text: str) -> list[int]:
        """Return the ids of `text` with the bos and eos tokens that the file asks for."""
        vocabulary = self._api.llama_model_get_vocab(self._model)
        data = text.encode()
        buffer = (self._api.llama_token * (len(data) + 8))()
        count = self._api.llama_tokenize(vocabulary, data, len(data), buffer, len(buffer), True, False)
        return list(buffer[:count])

    def greedy(self, ids: list[int], length: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (best token, logits (V,)) after `ids`, then after each best token, `length` times. The encoder of an
        encoder-decoder reads `ids`, and its decoder begins with the decoder start token."""
        api = self._api
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        if api.llama_model_has_encoder(self._model):
            self._run(api.llama_encode, ids)
            ids = [api.llama_model_decoder_start_token(self._model)]
        vocabulary = self._llama.n_vocab()
        for _ in range(length):
            self._run(api.llama_decode, ids)
            row = api.llama_get_logits_ith(self._context, -1)
            logits = np.ctypeslib.as_array(row, shape=(vocabulary,)).copy()
            ids = [int(logits.argmax())]
            yield ids[0], logits

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._llama.close()

    def _run(self, function: Callable, ids: list[int]) -> None:
        array = (self._api.llama_token * len(ids))(*ids)
        status = function(self._context, self._api.llama_batch_get_one(array, len(ids)))
        if status:
            raise CheckpointError(f"llama.cpp cannot compute this model (status {status})")
