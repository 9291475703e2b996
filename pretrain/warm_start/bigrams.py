"""Embedding and head to begin with: a bigram model, fitted to the counts of the corpus.

While its blocks are the identity, a decoder is a bigram model: embedding, norm, head (Elhage et al. 2021, "A
Mathematical Framework for Transformer Circuits"). Which token follows which is counted over a whole corpus in a second,
and the counts of one token stand for all its occurrences: in seconds the fit reaches what training takes minutes for.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from mini_llm.corpus.token_store import TokenStore
from mini_llm.engine.optim import MuonAdamW
from mini_llm.model import ModelConfig
from mini_llm.model.gradients import passing

ROWS = 512  # tokens whose followers are predicted in one step
STRETCH = 1 << 22  # tokens that are counted at once
# The rest is measured on reviews (benchmarks/RESULTS.md).
LEARNING_RATE, TIED_LEARNING_RATE = 0.03, 0.003  # of a table with a root mean square of 1, and of one that is small
BETAS, WARMUP_STEPS, FLAT = (0.9, 0.95), 5, 0.3
SAMPLING = 0.5  # power of a token's frequency with which it is drawn; the rest of it weights its gradient
PRIOR = 150.0  # occurrences of each token that are taken to be followed as any token is
# Root mean square of an untied embedding that training begins with: larger ones learn text a little faster and
# short fine-tunings of them more slowly.
EMBEDDING_SIZE = 0.1


def is_bigram_model(config: ModelConfig) -> bool:
    """Whether a new model of this kind, read as a decoder, is one, and can tell followers from what comes before.

    A decoder's head does not unless it is untied; an encoder's has a matrix of its own.
    """
    alone = config.init == "identity" and config.norm_place == "pre" and config.position == "rotary"
    asymmetric = not config.causal or not config.tie_word_embeddings
    return alone and asymmetric and not config.is_encoder_decoder and not config.type_vocab_size


@dataclass
class Bigrams:
    """How often each token follows each, as a CSR matrix; `totals` of its rows, and `shares` of its columns in all."""

    starts: Tensor
    followers: Tensor
    counts: Tensor
    totals: Tensor
    shares: Tensor

    @classmethod
    def count(cls, store: TokenStore, tokens: int, vocabulary: int, device: torch.device | None = None) -> "Bigrams":
        """Of the first `tokens` of `store`."""
        from scipy.sparse import coo_matrix, csr_matrix  # most runs begin without

        tokens = min(tokens, len(store))
        table = csr_matrix((vocabulary, vocabulary), dtype=np.float32)
        for start in range(0, tokens - 1, STRETCH):
            ids = store.read(start, min(STRETCH + 1, tokens - start)).astype(np.int32)
            pairs = np.ones(len(ids) - 1, np.float32), (ids[:-1], ids[1:])
            table = table + coo_matrix(pairs, table.shape).tocsr()
        totals, shares = (torch.from_numpy(np.asarray(table.sum(axis)).ravel()) for axis in (1, 0))
        starts, followers = torch.from_numpy(table.indptr).long(), torch.from_numpy(table.indices).long()
        parts = starts, followers, torch.from_numpy(table.data), totals, shares / shares.sum()
        return cls(*(part.to(device) for part in parts))

    def subtract_followers(self, probabilities: Tensor, tokens: Tensor) -> None:
        """Take from `probabilities` (R, V) what follows `tokens` (R,): (count + PRIOR share) / (total + PRIOR)."""
        scale = 1 / (self.totals[tokens] + PRIOR)
        probabilities.addcmul_(scale[:, None], self.shares, value=-PRIOR)
        lengths = self.starts[tokens + 1] - self.starts[tokens]
        rows = torch.repeat_interleave(lengths)
        ahead = self.starts[tokens] - (lengths.cumsum(0) - lengths)
        places = torch.arange(len(rows), device=rows.device) + ahead[rows]
        probabilities[rows, self.followers[places]] -= self.counts[places] * scale[rows]


def begin_as_bigrams(model: nn.Module, bigrams: Bigrams, steps: int, dtype: torch.dtype) -> None:
    """Fit embedding and head of a new CausalLM or MaskedLM (is_bigram_model) on the device of `bigrams`.

    Each step draws ROWS tokens and takes the cross-entropy of all that follows them, weighted so that its expectation
    is that of the corpus. `dtype`: of the products.
    """
    trunk, device = model.trunk, bigrams.counts.device
    parts = [part for name, part in model.named_children() if name != "trunk"]
    parts += [trunk.embed, trunk.embed_norm, trunk.norm]
    for part in parts:
        part.to(device)
    table, tied = trunk.embed.weight, model.config.tie_word_embeddings
    # Tied, a table is in two of them.
    learned = list(dict.fromkeys(p for part in parts[:-2] for p in part.parameters()))
    if not tied:
        _resize(table, rms_norm(table.detach(), table.shape[1:]), 1.0)
    rate = TIED_LEARNING_RATE if tied else LEARNING_RATE
    optimizer = MuonAdamW([{"params": learned, "lr": rate, "betas": BETAS, "eps": 1e-8}])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (steps * (1 - FLAT)))
    )
    drawn = bigrams.totals.pow(SAMPLING)
    for _ in range(steps):
        tokens = torch.multinomial(drawn, ROWS, replacement=True)
        weights = (bigrams.totals / drawn)[tokens]
        weights /= weights.sum()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model.predict(trunk.norm(trunk.embed_norm(trunk.embed(tokens))))
        gradient = torch.softmax(logits.detach(), -1, dtype=torch.float32)
        bigrams.subtract_followers(gradient, tokens)
        passing(logits, gradient.mul_(weights[:, None]).to(logits.dtype)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    if not tied:
        _resize(table, table.detach(), EMBEDDING_SIZE)
    for part in parts:
        part.zero_grad()
        part.to("cpu")


@torch.no_grad()
def _resize(table: nn.Parameter, rows: Tensor, size: float) -> None:
    """Set `table` to `rows`, scaled to this root mean square."""
    table.copy_(rows * (size / rows.pow(2).mean().sqrt()))
