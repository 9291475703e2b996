"""Initial embeddings: random, or a warm start from statistics of the corpus, counted before the first step."""

from dataclasses import dataclass, replace

from mini_llm.model import ModelConfig

from ..config import PretrainConfig
from ..plan.reasons import Reasons
from .bigrams import ROWS, is_bigram_model
from .cooccurrence import neighbours_for

# Counting takes about 0.3 us per token: five counted tokens for each token trained on cost 1 to 2 % of the time.
COUNTED_PER_TRAINED_TOKEN, MOST_COUNTED = 5, 1 << 25
# An untied head overfits a corpus that is read often. A run that reads at most FEW_TOKENS may read its corpus
# MOST_EPOCHS_OF_FEW times, since the warm start matters more there, any other MOST_EPOCHS times. Bits per byte with a
# tied and an untied head: reviews, 0.45 epochs: 1.729, 1.699. Standard library, 0.6 epochs: 1.319, 1.327; 1.2 epochs:
# 1.207, 1.255. tinyshakespeare, 20 epochs: 2.078, 2.096 to 2.156; 2.5 epochs (a million tokens), in nats: 3.542, 3.494.
MOST_EPOCHS, FEW_TOKENS, MOST_EPOCHS_OF_FEW = 0.6, 1 << 20, 2
# The share is of the FLOPs of all ranks, so that a run is the same on any number of ranks. With fewer steps an untied
# head ends worse than a tied one. A run that is so short that these take more than the share gives them up to
# LARGEST_SHARE: a step of the fit costs a sixth of a training step and teaches more.
SHARE_FOR_BIGRAMS, LARGEST_SHARE, FEWEST_STEPS, MOST_STEPS = 0.08, 0.4, 40, 320


@dataclass
class WarmStart:
    """How the embeddings of a new model are initialized.

    tokens: the first tokens of the corpus, which are counted; 0: embeddings stay random. cooccurrence: embeddings
    factorize co-occurrence counts. bigram_steps: optimizer steps that fit embeddings and head to bigram counts.
    """

    tokens: int = 0
    cooccurrence: bool = False
    bigram_steps: int = 0


def plan_warm_start(
    config: PretrainConfig, model: ModelConfig, tokens: int, flops: float, per_token: float, reasons: Reasons
) -> tuple[WarmStart, ModelConfig]:
    """The warm start of a new `model`, and the model to create, whose head may now be untied; adds to `reasons`.

    tokens: size of the corpus, 0 for pairs. flops: of the whole run. per_token: FLOPs per token.
    """
    counted = min(tokens, MOST_COUNTED, round(COUNTED_PER_TRAINED_TOKEN * flops / per_token))
    steps, untied, why_bigrams = _bigrams(config, model, flops, flops / per_token, tokens)
    cooccurrence = neighbours_for(model.vocab_size) >= model.hidden_size
    why_random = None
    if config.init_embeddings == "random":
        why_random = "given"
    elif not tokens:
        why_random = "pairs are too few to count"
    elif not steps and not cooccurrence:
        why_random = f"a vocabulary of {model.vocab_size:,} leaves fewer neighbours than the model has channels"
    if why_random:
        reasons.add("init_embeddings", "random", why_random)
        return WarmStart(), model
    method = "co-occurrence counts, factorized" if cooccurrence else "random before the bigrams"
    reasons.add("init_embeddings", f"{counted:,} tokens", method)
    reasons.add("bigrams", f"{steps} steps" if steps else "no", why_bigrams)
    if untied.tie_word_embeddings != model.tie_word_embeddings:
        reasons.add("head", "untied", "what follows a token differs from what precedes it")
    return WarmStart(counted, cooccurrence, steps), untied


def _bigrams(
    config: PretrainConfig, model: ModelConfig, flops: float, trained_tokens: float, tokens: int
) -> tuple[int, ModelConfig, str]:
    """(optimizer steps of the bigram fit, the model it needs, the reason), for a run that spends `flops` on
    `trained_tokens` of a corpus of `tokens`."""
    if config.init_embeddings == "cooccurrence":
        return 0, model, "init_embeddings=cooccurrence"
    if not model.causal and (not config.clm_warmup or model.next_sentence):
        return 0, model, "the model never predicts the next token"
    untied = model
    if model.causal and config.sizes.tie_word_embeddings is None:
        epochs = MOST_EPOCHS if trained_tokens > FEW_TOKENS else MOST_EPOCHS_OF_FEW
        if trained_tokens > epochs * tokens:
            return 0, model, f"an untied head would overfit: the corpus is read more than {epochs} times"
        untied = replace(model, tie_word_embeddings=False)
    if not is_bigram_model(untied):
        return 0, model, "a new model of this architecture is not a bigram model"
    flops_per_step = 6 * ROWS * model.vocab_size * model.hidden_size
    affordable = flops / flops_per_step
    steps = min(MOST_STEPS, max(FEWEST_STEPS, int(SHARE_FOR_BIGRAMS * affordable)))
    if steps > LARGEST_SHARE * affordable:
        return 0, model, f"pays off from {steps} steps on, which are more than {LARGEST_SHARE:.0%} of the FLOPs"
    share = max(SHARE_FOR_BIGRAMS, steps / affordable)
    return steps, untied, f"embeddings and head fitted to bigram counts with at most {share:.0%} of the FLOPs"
