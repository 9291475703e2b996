"""Warm start of embedding and head: a bigram model, fitted to the counts of the corpus.

A new decoder whose blocks are the identity is a bigram model: embedding, norm, head (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"). The bigrams of a whole corpus are counted in a second, and the counts
of one token summarize all its occurrences, so that the fit reaches in seconds a loss for which training needs minutes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from mini_llm.corpus.token_store import TokenStore
from mini_llm.engine.optim import MuonAdamW
from mini_llm.engine.run.deadline import Deadline
from mini_llm.model import ModelConfig
from mini_llm.model.gradients import passing

ROWS = 512  # tokens whose successors are predicted in one step
CHUNK = 1 << 22  # tokens counted at a time
# The following values were tuned on reviews (docs/LOG.md).
LEARNING_RATE, TIED_LEARNING_RATE = 0.03, 0.003  # for an embedding scaled to a root mean square of 1; for a tied one
BETAS, WARMUP_STEPS, FLAT = (0.9, 0.95), 5, 0.3
STEPS_BETWEEN_CHECKS = 4
SAMPLING = 0.5  # tokens are drawn by frequency ** SAMPLING; their gradients are weighted by the rest of the frequency
PRIOR = 150.0  # pseudo-counts per token, distributed like the unigrams
# Root mean square of the untied embedding after the fit: larger values learn text a little faster but make short
# fine-tuning slower.
EMBEDDING_RMS = 0.1


def is_bigram_model(config: ModelConfig) -> bool:
    """Whether a new model with this configuration is a bigram model that can tell successors from predecessors.

    A decoder needs an untied head for that; an encoder's prediction head has a matrix of its own.
    """
    is_bigram = config.init == "identity" and config.norm_place == "pre" and config.position == "rotary"
    asymmetric = not config.causal or not config.tie_word_embeddings
    return is_bigram and asymmetric and not config.is_encoder_decoder and not config.type_vocab_size


@dataclass
class Bigrams:
    """Bigram counts as a CSR matrix: row = token, column = its successor. V is the vocabulary size, N the number of
    different bigrams."""

    starts: Tensor  # V + 1
    successors: Tensor  # N
    counts: Tensor  # N
    totals: Tensor  # V: sums of rows
    unigrams: Tensor  # V: sums of columns, as shares of all

    @classmethod
    def count(
        cls,
        store: TokenStore,
        tokens: int,
        vocabulary: int,
        device: torch.device | None = None,
        deadline: Deadline | None = None,
    ) -> tuple["Bigrams", int]:
        """Count the bigrams of the first `tokens` tokens of `store`; returns them and the number of tokens read: all of
        them, or the chunks before the deadline."""
        from scipy.sparse import coo_matrix, csr_matrix  # slow to import, and most runs do not need it

        tokens = min(tokens, len(store))
        table = csr_matrix((vocabulary, vocabulary), dtype=np.float32)
        for start in range(0, tokens - 1, CHUNK):
            if start and deadline is not None and deadline.passed:
                # A chunk reads one token of the next chunk.
                tokens = start + 1
                break
            ids = store.read(start, min(CHUNK + 1, tokens - start)).astype(np.int32)
            pairs = np.ones(len(ids) - 1, np.float32), (ids[:-1], ids[1:])
            table = table + coo_matrix(pairs, table.shape).tocsr()
        totals, unigrams = (torch.from_numpy(np.asarray(table.sum(axis)).ravel()) for axis in (1, 0))
        starts, successors = torch.from_numpy(table.indptr).long(), torch.from_numpy(table.indices).long()
        parts = starts, successors, torch.from_numpy(table.data), totals, unigrams / unigrams.sum()
        return cls(*(part.to(device) for part in parts)), tokens

    def subtract_targets(self, probabilities: Tensor, tokens: Tensor) -> None:
        """Subtract in place from `probabilities` (R, V) the smoothed successor distribution of `tokens` (R,):
        (count + PRIOR unigram) / (total + PRIOR)."""
        scale = 1 / (self.totals[tokens] + PRIOR)
        probabilities.addcmul_(scale[:, None], self.unigrams, value=-PRIOR)
        lengths = self.starts[tokens + 1] - self.starts[tokens]
        rows = torch.repeat_interleave(lengths)
        ahead = self.starts[tokens] - (lengths.cumsum(0) - lengths)
        places = torch.arange(len(rows), device=rows.device) + ahead[rows]
        probabilities[rows, self.successors[places]] -= self.counts[places] * scale[rows]


def fit_bigrams(
    model: nn.Module,
    bigrams: Bigrams,
    totals: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    deadline: Deadline | None = None,
) -> list[tuple[int, int]]:
    """Fit embedding and head of a new CausalLM or MaskedLM (see is_bigram_model) on the device of `bigrams`.

    Each step draws ROWS tokens and minimizes the cross-entropy against their successor distributions, weighted so that
    its expectation is the cross-entropy of the corpus. `dtype`: for matrix products.

    totals: (step, number of steps planned from there on), such as [(0, 200)]. Fewer are done, with a learning rate that
    falls earlier, when they would not end before the deadline. Returns the totals that were used, which give the same
    bits again.
    """
    trunk, device = model.trunk, bigrams.counts.device
    parts = [part for name, part in model.named_children() if name != "trunk"]
    parts += [trunk.embed, trunk.embed_norm, trunk.norm]
    for part in parts:
        part.to(device)
    table, tied = trunk.embed.weight, model.config.tie_word_embeddings
    # A tied table belongs to two modules.
    learned = list(dict.fromkeys(p for part in parts[:-2] for p in part.parameters()))
    if not tied:
        _rescale(table, rms_norm(table.detach(), table.shape[1:]), 1.0)
    rate = TIED_LEARNING_RATE if tied else LEARNING_RATE
    optimizer = MuonAdamW([{"params": learned, "lr": rate, "betas": BETAS, "eps": 1e-8}])
    drawn = bigrams.totals.pow(SAMPLING)
    plan, total, step, start = dict(totals), 0, 0, time.monotonic()
    while step < (total := plan.get(step, total)):
        used = time.monotonic() - start
        # The first steps are slower: look when half of the time is over, and after every fourth step from then on.
        if deadline is not None and step and used > deadline.left and step % STEPS_BETWEEN_CHECKS == 0:
            fitting = step + int(max(0.0, deadline.left) * step / used)
            if fitting < total:
                plan[step] = total = max(fitting, step + 1)
        factor = min(1.0, (step + 1) / WARMUP_STEPS, (total - step) / (total * (1 - FLAT)))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        tokens = torch.multinomial(drawn, ROWS, replacement=True)
        weights = (bigrams.totals / drawn)[tokens]
        weights /= weights.sum()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model.predict(trunk.norm(trunk.embed_norm(trunk.embed(tokens))))
        gradient = torch.softmax(logits.detach(), -1, dtype=torch.float32)
        bigrams.subtract_targets(gradient, tokens)
        passing(logits, gradient.mul_(weights[:, None]).to(logits.dtype)).backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    if not tied:
        _rescale(table, table.detach(), EMBEDDING_RMS)
    for part in parts:
        part.zero_grad()
        part.to("cpu")
    return sorted(plan.items())


@torch.no_grad()
def _rescale(table: nn.Parameter, rows: Tensor, rms: float) -> None:
    """Set `table` to `rows`, scaled to the root mean square `rms`."""
    table.copy_(rows * (rms / rows.pow(2).mean().sqrt()))
