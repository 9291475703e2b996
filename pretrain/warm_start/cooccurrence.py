"""Warm start of token embeddings: factorized co-occurrence counts of the corpus.

word2vec implicitly factorizes the pointwise mutual information of tokens and their neighbours (Levy and Goldberg 2014,
"Neural Word Embedding as Implicit Matrix Factorization"). Counting and factorizing that matrix takes seconds, for
several times the tokens that a short training reads.
"""

import torch
from torch import Tensor, nn

from mini_llm.corpus.token_store import TokenStore

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
def init_from_cooccurrences(embedding: nn.Embedding, store: TokenStore, tokens: int) -> None:
    """Overwrite the rows of tokens that occur among the first `tokens` tokens of `store`; others stay random."""
    counts = count_neighbours(store, tokens, embedding.num_embeddings)
    seen = counts.any(1)
    vectors = factorize(counts, embedding.embedding_dim)[seen]
    embedding.weight[seen] = vectors * (SCALE * embedding.weight.std() / vectors.pow(2).mean().sqrt())


def count_neighbours(store: TokenStore, tokens: int, vocabulary: int) -> Tensor:
    """Distance-weighted counts of each token near each of the most frequent tokens: (V, neighbours + 1) in fp32."""
    tokens, size = min(tokens, len(store)), neighbours_for(vocabulary)
    frequencies = torch.from_numpy(store.read(0, min(tokens, CHUNK))).bincount(minlength=vocabulary)
    # The last column collects all other tokens and is cleared at the end.
    column = torch.full((vocabulary,), size)
    column[frequencies.argsort(descending=True, stable=True)[:size]] = torch.arange(size)
    counts = torch.zeros(vocabulary, size + 1)
    for start in range(0, tokens, CHUNK):
        ids = torch.from_numpy(store.read(start, min(CHUNK, tokens - start)))
        rows, columns = ids * (size + 1), column[ids]
        for distance in range(1, WINDOW + 1):
            weight = torch.tensor((WINDOW + 1 - distance) / WINDOW)
            for row, near in ((rows[:-distance], columns[distance:]), (rows[distance:], columns[:-distance])):
                counts.view(-1).scatter_add_(0, row + near, weight.expand(len(row)))
    counts[:, size] = 0
    return counts


def factorize(counts: Tensor, width: int) -> Tensor:
    """U sqrt(S) of the positive pointwise mutual information (PPMI), (V, width). Overwrites `counts`."""
    of_neighbours = counts.sum(0).pow(SMOOTHING)
    expected = counts.sum(1, keepdim=True) * (of_neighbours / of_neighbours.sum())
    # 0/0 gives NaN and log 0 gives -inf; both become 0, no association.
    information = counts.div_(expected).log_().nan_to_num_(0.0).clamp_(min=0)
    u, s, _ = torch.svd_lowrank(information, min(width + OVERSAMPLING, *counts.shape), ITERATIONS)
    return u[:, :width] * s[:width].sqrt()
