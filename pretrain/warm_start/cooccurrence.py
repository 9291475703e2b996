"""Warm start of token embeddings: factorized co-occurrence counts of the corpus.

word2vec implicitly factorizes the pointwise mutual information of tokens and their neighbours (Levy and Goldberg 2014,
"Neural Word Embedding as Implicit Matrix Factorization"). Counting and factorizing that matrix takes seconds, for
several times the tokens that a short training reads.
"""

import time

import torch
from torch import Tensor, nn

from mini_llm.corpus.token_store import TokenStore
from mini_llm.engine.run.deadline import Deadline

WINDOW = 5  # neighbours on each side; a neighbour at distance d counts (WINDOW + 1 - d) / WINDOW (Mikolov et al. 2013)
SMOOTHING = 0.75  # exponent of the neighbours' frequencies (Levy, Goldberg and Dagan 2015)
# Only the most frequent tokens count as neighbours, so that the matrix has at most MOST_CELLS (134 MB, held twice).
MOST_NEIGHBOURS, MOST_CELLS = 2048, 1 << 25
# Root mean square of the result over the standard deviation of the random embedding (docs/LOG.md).
SCALE = 4.0
OVERSAMPLING, ITERATIONS = 16, 2  # randomized SVD (Halko et al. 2011)
CHUNK = 1 << 20  # tokens counted at a time


def neighbours_for(vocabulary: int) -> int:
    """Number of tokens that count as neighbours in a vocabulary of this size."""
    return min(MOST_NEIGHBOURS, vocabulary, MOST_CELLS // vocabulary)


@torch.no_grad()
def init_from_cooccurrences(
    embedding: nn.Embedding,
    store: TokenStore,
    tokens: int,
    counting: Deadline | None = None,
    deadline: Deadline | None = None,
) -> int:
    """Overwrite the rows of tokens that occur among the first `tokens` tokens of `store`; others stay random.

    Counts until the deadline `counting`, at least one chunk, and factorizes if that fits before `deadline`. Returns the
    number of tokens that were counted, or 0 if the embedding was left as it is.
    """
    counts, tokens = count_neighbours(store, tokens, embedding.num_embeddings, counting or Deadline())
    if deadline is not None and seconds_to_factorize(counts, embedding.embedding_dim) > deadline.left:
        return 0
    seen = counts.any(1)
    vectors = factorize(counts, embedding.embedding_dim)[seen]
    embedding.weight[seen] = vectors * (SCALE * embedding.weight.std() / vectors.pow(2).mean().sqrt())
    return tokens


def count_neighbours(
    store: TokenStore, tokens: int, vocabulary: int, deadline: Deadline | None = None
) -> tuple[Tensor, int]:
    """Distance-weighted counts of each token near each of the most frequent tokens, (V, neighbours + 1) in fp32, and
    the number of tokens counted: all of them, or the chunks before the deadline."""
    tokens, size = min(tokens, len(store)), neighbours_for(vocabulary)
    frequencies = torch.from_numpy(store.read(0, min(tokens, CHUNK))).bincount(minlength=vocabulary)
    # The last column collects all other tokens and is cleared at the end.
    column = torch.full((vocabulary,), size)
    column[frequencies.argsort(descending=True, stable=True)[:size]] = torch.arange(size)
    counts = torch.zeros(vocabulary, size + 1)
    for start in range(0, tokens, CHUNK):
        if start and deadline is not None and deadline.passed:
            tokens = start
            break
        ids = torch.from_numpy(store.read(start, min(CHUNK, tokens - start)))
        rows, columns = ids * (size + 1), column[ids]
        for distance in range(1, WINDOW + 1):
            weight = torch.tensor((WINDOW + 1 - distance) / WINDOW)
            for row, near in ((rows[:-distance], columns[distance:]), (rows[distance:], columns[:-distance])):
                counts.view(-1).scatter_add_(0, row + near, weight.expand(len(row)))
    counts[:, size] = 0
    return counts, tokens


def seconds_to_factorize(counts: Tensor, width: int) -> float:
    """The time of `factorize`, from one of its 2 + 2 ITERATIONS products; all of them take half of it."""
    start = time.monotonic()
    counts @ torch.ones(counts.size(1), width + OVERSAMPLING)
    return 2 * (2 + 2 * ITERATIONS) * (time.monotonic() - start)


def factorize(counts: Tensor, width: int) -> Tensor:
    """U sqrt(S) of the positive pointwise mutual information (PPMI), (V, width). Overwrites `counts`."""
    of_neighbours = counts.sum(0).pow(SMOOTHING)
    expected = counts.sum(1, keepdim=True) * (of_neighbours / of_neighbours.sum())
    # A ratio below 1, or 0/0, is no association. The logarithm of a zero takes many times as long as others.
    information = counts.div_(expected).nan_to_num_(0.0).clamp_(min=1).log_()
    u, s, _ = torch.svd_lowrank(information, min(width + OVERSAMPLING, *counts.shape), ITERATIONS)
    return u[:, :width] * s[:width].sqrt()
