"""Token embeddings to begin with: which tokens stand near each other in the corpus, factorized.

What word2vec learns is a factorization of the pointwise mutual information of tokens and their neighbours (Levy and
Goldberg 2014, "Neural Word Embedding as Implicit Matrix Factorization"). That matrix can be counted and factorized in
seconds, over several times as many tokens as a short training reads.
"""

import torch
from torch import Tensor, nn

from mini_llm.corpus.token_store import TokenStore

WINDOW = 5  # neighbours on each side; one at distance d counts (WINDOW + 1 - d) / WINDOW (Mikolov et al. 2013)
SMOOTHING = 0.75  # of the neighbours' frequencies (Levy, Goldberg and Dagan 2015)
# Neighbours are the most frequent tokens, as many as keep the matrix within so many cells (134 MB, twice).
MOST_NEIGHBOURS, MOST_CELLS = 2048, 1 << 25
SCALE = 4.0  # of the standard deviation that the model begins with (benchmarks/RESULTS.md)
OVERSAMPLING, ITERATIONS = 16, 2  # of the randomized factorization (Halko et al. 2011)
STRETCH = 1 << 20  # tokens that are counted at once


def neighbours_for(vocabulary: int) -> int:
    """How many tokens count as neighbours."""
    return min(MOST_NEIGHBOURS, vocabulary, MOST_CELLS // vocabulary)


@torch.no_grad()
def begin_with_cooccurrences(embedding: nn.Embedding, store: TokenStore, tokens: int) -> None:
    """Overwrite the rows of tokens that occur among the first `tokens` of `store`; others stay random."""
    counts = count_neighbours(store, tokens, embedding.num_embeddings)
    seen = counts.any(1)
    vectors = factorize(counts, embedding.embedding_dim)[seen]
    embedding.weight[seen] = vectors * (SCALE * embedding.weight.std() / vectors.pow(2).mean().sqrt())


def count_neighbours(store: TokenStore, tokens: int, vocabulary: int) -> Tensor:
    """How often each token stands near each of the most frequent ones, weighted: (vocabulary, neighbours + 1) fp32."""
    tokens, size = min(tokens, len(store)), neighbours_for(vocabulary)
    frequencies = torch.from_numpy(store.read(0, min(tokens, STRETCH))).bincount(minlength=vocabulary)
    # One column more takes what is no neighbour; it ends as zero.
    column = torch.full((vocabulary,), size)
    column[frequencies.argsort(descending=True, stable=True)[:size]] = torch.arange(size)
    counts = torch.zeros(vocabulary, size + 1)
    for start in range(0, tokens, STRETCH):
        ids = torch.from_numpy(store.read(start, min(STRETCH, tokens - start)))
        rows, columns = ids * (size + 1), column[ids]
        for distance in range(1, WINDOW + 1):
            weight = torch.tensor((WINDOW + 1 - distance) / WINDOW)
            for row, near in ((rows[:-distance], columns[distance:]), (rows[distance:], columns[:-distance])):
                counts.view(-1).scatter_add_(0, row + near, weight.expand(len(row)))
    counts[:, size] = 0
    return counts


def factorize(counts: Tensor, width: int) -> Tensor:
    """Rows of U sqrt(S) of the positive pointwise mutual information, (vocabulary, width); overwrites `counts`."""
    of_neighbours = counts.sum(0).pow(SMOOTHING)
    expected = counts.sum(1, keepdim=True) * (of_neighbours / of_neighbours.sum())
    # 0/0 gives NaN, and log 0 -inf: neither is a positive association.
    information = counts.div_(expected).log_().nan_to_num_(0.0).clamp_(min=0)
    u, s, _ = torch.svd_lowrank(information, min(width + OVERSAMPLING, *counts.shape), ITERATIONS)
    return u[:, :width] * s[:width].sqrt()
