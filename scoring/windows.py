"""Windows over a text longer than the context: lm-eval's rolling log-likelihood, with any stride."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mini_llm.engine.errors import ConfigError


class Window(NamedTuple):
    """`inputs` to give to a model; the logits of its last `scored` positions predict `targets`."""

    inputs: list[int]
    targets: list[int]

    @property
    def scored(self) -> int:
        return len(self.targets)


def rolling_windows(ids: Sequence[int], prefix: int, context: int, stride: int | None = None) -> Iterator[Window]:
    """Yield windows of at most `context` tokens that predict every token of `ids` exactly once.

    The first window starts with the token `prefix`. Each later one predicts `stride` tokens (default: `context`) and
    begins `context` tokens before its last prediction, so that a token has at least `context` - `stride` + 1 tokens
    before it. With the default stride this is EleutherAI lm-eval's `loglikelihood_rolling`
    (get_rolling_token_windows with context_len=1). Raises ConfigError for a stride outside 1 to `context`.
    """
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ConfigError(f"--stride {stride}: must be from 1 to the context of the model, {context}")
    ids = list(ids)
    done = min(context, len(ids))
    if done:
        yield Window([prefix, *ids[: done - 1]], ids[:done])
    while done < len(ids):
        count = min(stride, len(ids) - done)
        end = done + count
        yield Window(ids[end - context - 1 : end - 1], ids[done:end])
        done = end
