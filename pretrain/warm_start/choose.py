"""What a new model begins with: nothing, or what can be counted in its corpus before the first step."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from mini_llm.corpus.token_store import TokenStore
from mini_llm.model import ModelConfig

from ..config import PretrainConfig
from .bigrams import ROWS, Bigrams, begin_as_bigrams, is_bigram_model
from .cooccurrence import begin_with_cooccurrences, neighbours_for

# Counting takes some 0.3 us a token: five for each that is read cost one to two hundredths of the time.
COUNTED_FOR_ONE_READ, MOST_COUNTED = 5, 1 << 25
# A head of its own learns a corpus by heart that is read much: how often a run may be expected to read it, and how
# often one that reads FEW tokens, in which what it begins with counts more. Bits per byte tied and untied: reviews 0.45
# times 1.729, 1.699; standard library 0.6 times 1.319, 1.327, 1.2 times 1.207, 1.255; tinyshakespeare 20 times 2.078,
# 2.096 to 2.156, but 2.5 times, a million tokens, 3.542 and 3.494 nats.
MOST_READINGS, FEW, MOST_READINGS_OF_FEW = 0.6, 1 << 20, 2
# Of the floating-point operations of all ranks: a run is the same on any number of them. Fewer steps would leave
# an untied head worse than a tied one.
SHARE_FOR_BIGRAMS, FEWEST_STEPS, MOST_STEPS = 0.08, 40, 320


@dataclass
class Beginning:
    """The corpus's first `tokens` are counted; 0: embeddings begin at random."""

    tokens: int = 0
    cooccurrences: bool = False
    bigram_steps: int = 0


def plan_beginning(
    config: PretrainConfig, model: ModelConfig, tokens: int, flops: float, per_token: float
) -> tuple[Beginning, ModelConfig, list[tuple[str, str, str]]]:
    """How a new `model` begins whose run spends `flops`, `per_token` of a corpus of `tokens`; the model it then is;
    and what to say of both, with the reasons."""

    def at_random(why: str) -> tuple[Beginning, ModelConfig, list[tuple[str, str, str]]]:
        return Beginning(), model, [("embeddings", "random", why)]

    if config.embeddings == "random":
        return at_random("given")
    if not tokens:
        return at_random("pairs are too few to count")
    counted = min(tokens, MOST_COUNTED, round(COUNTED_FOR_ONE_READ * flops / per_token))
    steps, untied, why = _bigrams(config, model, flops, flops / per_token, tokens)
    near = neighbours_for(model.vocab_size) >= model.hidden_size
    if not steps and not near:
        return at_random(f"{model.vocab_size:,} pieces leave fewer neighbours than the model is wide")
    rows = [("embeddings", f"{counted:,} tokens", "what stands near each token, factorized" if near else "random")]
    rows.append(("bigrams", f"{steps} steps" if steps else "no", why))
    if untied.tie_word_embeddings != model.tie_word_embeddings:
        rows.append(("head", "untied", "what follows a token is not what precedes it"))
    return Beginning(counted, near, steps), untied, rows


def _bigrams(
    config: PretrainConfig, model: ModelConfig, flops: float, read: float, tokens: int
) -> tuple[int, ModelConfig, str]:
    """(steps of fitting, the model they need, the reason), for a run that spends `flops` to read `read` tokens of a
    corpus of `tokens`."""
    if config.embeddings == "cooccurrence":
        return 0, model, "embeddings=cooccurrence"
    if not model.causal and (not config.causal_start or model.next_sentence):
        return 0, model, "it never predicts the next token"
    untied = model
    if model.causal and config.sizes.tie_word_embeddings is None:
        most = MOST_READINGS if read > FEW else MOST_READINGS_OF_FEW
        if read > most * tokens:
            return 0, model, f"an untied head would overfit: the corpus is read more than {most} times"
        untied = replace(model, tie_word_embeddings=False)
    if not is_bigram_model(untied):
        return 0, model, "a new model of this kind is not one"
    one = 6 * ROWS * model.vocab_size * model.hidden_size
    steps = min(MOST_STEPS, int(SHARE_FOR_BIGRAMS * flops / one))
    if steps < FEWEST_STEPS:
        return 0, model, f"pays from {FEWEST_STEPS} steps on, {SHARE_FOR_BIGRAMS:.0%} of the work are {steps}"
    return steps, untied, f"what follows each token, fitted: at most {SHARE_FOR_BIGRAMS:.0%} of the work"


def begin(model: nn.Module, store: TokenStore, beginning: Beginning, device: torch.device, dtype: torch.dtype) -> None:
    """Give a new `model` its beginning, from the counts of `store`; fitted on `device` with products in `dtype`."""
    trunk = model.trunk.encoder if model.config.is_encoder_decoder else model.trunk
    if beginning.cooccurrences:
        begin_with_cooccurrences(trunk.embed, store, beginning.tokens)
    if beginning.bigram_steps:
        bigrams = Bigrams.count(store, beginning.tokens, model.config.vocab_size, device)
        begin_as_bigrams(model, bigrams, beginning.bigram_steps, dtype)
