"""Rank given continuations of a prompt by their likelihood."""

from typing import NamedTuple

import torch
from torch import Tensor

from mini_llm.engine.errors import ConfigError
from mini_llm.model import KVCache, Seq2SeqLM

from .decode import TextGenerator
from .sampling import check_finite


class Choice(NamedTuple):
    """A continuation, its log-probability after the prompt, and its probability among all choices."""

    text: str
    logprob: float
    probability: float


@torch.inference_mode()
def rank_choices(generator: TextGenerator, prompt: str, choices: list[str]) -> list[Choice]:
    """Return the choices, most likely first.

    The log-probability of a choice is the sum over its tokens, without an end token and without length normalization.
    Raises ConfigError for an empty or repeated choice and for one that is longer than the context.
    """
    if not choices or "" in choices or len(set(choices)) < len(choices):
        raise ConfigError(f"--choices {','.join(choices)}: give different texts, each with at least one character")
    scores = _answer_scores if isinstance(generator.model, Seq2SeqLM) else _continuation_scores
    sums = torch.tensor(scores(generator, prompt, choices), dtype=torch.float64)
    found = zip(choices, sums.tolist(), sums.softmax(0).tolist(), strict=True)
    return sorted((Choice(*row) for row in found), key=lambda choice: -choice.logprob)


def _continuation_scores(generator: TextGenerator, prompt: str, choices: list[str]) -> list[float]:
    """Log-probabilities of `choices` after `prompt` by a causal model.

    A choice is tokenized together with the prompt, as in training. The tokens that count begin where one of the choices
    first differs from the prompt: a space at the end of the prompt may belong to a token of the choice.
    """
    model, encode = generator.model, generator.tokenizer.encode
    before, _ = generator.frame
    if not before and not prompt and generator.tokenizer.bos_id is not None:
        before = [generator.tokenizer.bos_id]
    context = [*before, *encode(prompt)]
    rows = [[*before, *encode(prompt + choice)] for choice in choices]
    shared = min(_common(context, row) for row in rows)
    if shared == 0:
        raise ConfigError("the prompt is empty, and this tokenizer has no bos token to start from: give a prompt")
    limit, longest = model.config.max_position_embeddings, max(map(len, rows))
    dropped = max(0, longest - 1 - limit)
    if dropped >= shared:
        raise ConfigError(f"--choices: a choice of {longest - shared} tokens exceeds the context of {limit} tokens")
    weight = model.lm_head.weight
    cache = KVCache(model.config, 1, longest - dropped, device=weight.device, dtype=weight.dtype)
    first = _logprobs(generator, rows[0][dropped:shared], cache)[-1:]
    scores = []
    for row in rows:
        cache.truncate(shared - dropped)
        tokens = torch.tensor(row[shared:], device=weight.device)
        following = _logprobs(generator, row[shared:-1], cache) if len(row) > shared + 1 else first[:0]
        scores.append(float(torch.cat([first, following]).gather(1, tokens[:, None]).double().sum()))
    return scores


def _answer_scores(generator: TextGenerator, prompt: str, choices: list[str]) -> list[float]:
    """Log-probabilities of `choices` as answers of an encoder-decoder."""
    model = generator.model
    assert isinstance(model, Seq2SeqLM)
    device = model.lm_head.weight.device
    memory = model.trunk.encoder(torch.tensor([generator.sample(prompt).prompt_ids], device=device))
    scores = []
    for choice in choices:
        ids = generator.tokenizer.encode(choice)
        inputs = torch.tensor([[model.config.start_token, *ids[:-1]]], device=device)
        logits = model.predict(model.trunk.decoder(inputs, None, None, memory=memory))[0]
        check_finite(logits)
        tokens = torch.tensor(ids, device=device)
        scores.append(float(logits.float().log_softmax(-1).gather(1, tokens[:, None]).double().sum()))
    return scores


def _logprobs(generator: TextGenerator, ids: list[int], cache: KVCache) -> Tensor:
    """Append `ids` to the cache. Return the log-probabilities (T, V) after each."""
    model = generator.model
    hidden = model.trunk(torch.tensor([ids], device=model.lm_head.weight.device), None, cache)
    # The first call reads the whole prompt, of which only the last position counts.
    logits = model.predict(hidden if cache.length > len(ids) else hidden[:, -1:])[0]
    check_finite(logits)
    return logits.float().log_softmax(-1)


def _common(first: list[int], second: list[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
