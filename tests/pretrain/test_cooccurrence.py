"""Embeddings from co-occurrence counts: the counts, the factorization, and that similar tokens get similar vectors."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from mini_llm.corpus.build import build_store
from mini_llm.corpus.config import CorpusConfig
from pretrain.warm_start import cooccurrence
from pretrain.warm_start.cooccurrence import (
    SCALE,
    WINDOW,
    count_neighbours,
    factorize,
    init_from_cooccurrences,
    neighbours_for,
)
from tests.byte_tokenizer import ByteEncoder

VOCABULARY = 300


@pytest.fixture
def store(tmp_path):
    """Sentences in which b and c are interchangeable, and x and y too."""
    generator = torch.Generator().manual_seed(0)

    def choice(letters: str) -> str:
        return letters[torch.randint(len(letters), (1,), generator=generator)]

    lines = ("".join(f"a{choice('bc')}defghijk{choice('xy')}opqrstu" for _ in range(20)) for _ in range(200))
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    corpus = CorpusConfig(sources=str(tmp_path / "text.txt"), validation_fraction=0.1)
    return build_store(corpus, ByteEncoder(), tmp_path / "tokens")["train"]


def test_counts_match_the_definition(store, monkeypatch):
    monkeypatch.setattr(cooccurrence, "MOST_NEIGHBOURS", 6)
    tokens = 500
    ids = store.read(0, tokens).tolist()
    frequent = sorted(set(ids), key=lambda i: -ids.count(i))[:6]
    expected = torch.zeros(VOCABULARY, 7)
    for i, token in enumerate(ids):
        for j in range(max(0, i - WINDOW), min(len(ids), i + WINDOW + 1)):
            if j != i and ids[j] in frequent:
                expected[token, frequent.index(ids[j])] += (WINDOW + 1 - abs(i - j)) / WINDOW
    counts, _ = count_neighbours(store, tokens, VOCABULARY)
    order = lambda table: table[:, table.sum(0).argsort()]  # noqa: E731 - equally frequent tokens may change places
    assert torch.allclose(order(counts), order(expected), atol=1e-3)


def test_the_factors_approximate_the_mutual_information():
    counts = torch.randint(0, 9, (12, 8), generator=torch.Generator().manual_seed(0)).float()
    smoothed = counts.sum(0) ** 0.75 / (counts.sum(0) ** 0.75).sum()
    information = (counts / counts.sum(1, keepdim=True) / smoothed).log().clamp(min=0)
    torch.manual_seed(0)
    vectors = factorize(counts.clone(), 8)
    # U S U', the square root of M M'.
    gram = vectors @ vectors.T
    assert torch.allclose(gram @ gram, information @ information.T, atol=1e-4)


def test_interchangeable_tokens_get_similar_vectors(store):
    torch.manual_seed(0)
    embedding = nn.Embedding(VOCABULARY, 4)
    nn.init.normal_(embedding.weight, std=0.02)
    before = embedding.weight.detach().clone()
    init_from_cooccurrences(embedding, store, len(store))
    b, c, x, y = (embedding.weight[ord(letter) + 3] for letter in "bcxy")
    assert min(cosine_similarity(b, c, 0), cosine_similarity(x, y, 0)) > 0.95
    assert cosine_similarity(b, x, 0) < 0.5
    seen = torch.zeros(VOCABULARY, dtype=torch.bool)
    seen[torch.from_numpy(store.read(0, len(store)))] = True
    assert torch.equal(embedding.weight[~seen], before[~seen])
    assert embedding.weight[seen].pow(2).mean().sqrt().item() == pytest.approx(SCALE * before.std().item(), rel=1e-4)


def test_the_matrix_size_is_bounded():
    assert all(size * neighbours_for(size) <= 1 << 25 for size in (300, 8192, 50_000, 250_000))
