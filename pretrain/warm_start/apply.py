"""Apply a warm start within a share of the budget, and record how much of it was done, so that it can be repeated."""

import time
from collections.abc import Callable

import torch
from pydantic import BaseModel, NonNegativeInt
from torch import nn

from mini_llm.corpus.token_store import TokenStore
from mini_llm.engine.run.deadline import Deadline

from .bigrams import Bigrams, fit_bigrams
from .choose import WarmStart
from .cooccurrence import init_from_cooccurrences

# Shares of the budget in wall time by which each phase ends. The plan expects a tenth in all; a busy machine is slower.
NEIGHBOURS_COUNTED, FACTORIZED, BIGRAMS_COUNTED, FITTED = 0.06, 0.15, 0.2, 0.3


class Applied(BaseModel):
    """What was done of a warm start: warm_start.json of a run.

    neighbour_tokens: tokens counted for co-occurrences, 0 if the embeddings stayed random. bigram_tokens: tokens whose
    bigrams were counted. bigram_totals: (step, steps planned from there on) of the fit to bigrams; the last pair says
    how many were done.
    """

    neighbour_tokens: NonNegativeInt = 0
    bigram_tokens: NonNegativeInt = 0
    bigram_totals: list[tuple[NonNegativeInt, NonNegativeInt]] = []


def apply_warm_start(
    model: nn.Module,
    store: TokenStore,
    warm_start: WarmStart,
    device: torch.device,
    dtype: torch.dtype,
    say: Callable[[str], None],
    budget: float | None = None,
    earlier: Applied | None = None,
) -> Applied:
    """Initialize embeddings (and head) of a new `model` from the counts of `store`; fitted on `device`, with matrix
    products in `dtype`.

    budget: seconds of the whole run; its phases are cut to their shares. earlier: repeat what was done then, whatever
    time it takes. say: shows a line about each phase.
    """
    trunk = model.trunk.encoder if model.config.is_encoder_decoder else model.trunk
    done, start = Applied(), time.monotonic()

    def deadline(share: float) -> Deadline:
        used = time.monotonic() - start
        return Deadline(None if budget is None or earlier is not None else share * budget - used)

    if warm_start.cooccurrence and (earlier is None or earlier.neighbour_tokens):
        tokens = earlier.neighbour_tokens if earlier else warm_start.tokens
        say(f"warm start: co-occurrences of {tokens:,} tokens")
        done.neighbour_tokens = init_from_cooccurrences(
            trunk.embed, store, tokens, deadline(NEIGHBOURS_COUNTED), deadline(FACTORIZED)
        )
    if warm_start.bigram_steps and (earlier is None or earlier.bigram_totals):
        tokens = earlier.bigram_tokens if earlier else warm_start.tokens
        say(f"warm start: bigrams of {tokens:,} tokens, fitted in {warm_start.bigram_steps} steps")
        bigrams, done.bigram_tokens = Bigrams.count(
            store, tokens, model.config.vocab_size, device, deadline(BIGRAMS_COUNTED)
        )
        totals = earlier.bigram_totals if earlier else [(0, warm_start.bigram_steps)]
        done.bigram_totals = fit_bigrams(model, bigrams, totals, dtype, deadline(FITTED))
    cut = [
        f"{had:,} of {wanted:,} {what}"
        for what, had, wanted in (
            ("co-occurrence tokens", done.neighbour_tokens, warm_start.tokens * warm_start.cooccurrence),
            ("bigram tokens", done.bigram_tokens, warm_start.tokens * bool(warm_start.bigram_steps)),
            ("bigram steps", done.bigram_totals[-1][1] if done.bigram_totals else 0, warm_start.bigram_steps),
        )
        if had < min(wanted, len(store) if "tokens" in what else wanted)
    ]
    seconds = time.monotonic() - start
    say(f"warm start: {seconds:.1f} s" + (f", cut to its share of the budget: {', '.join(cut)}" if cut else ""))
    return done
