"""Random documents: prose, indented code and a few rare characters."""

import random

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "he", "was", "for", "on", "are", "as", "with", "his"]


def make_documents(count: int = 120, seed: int = 0) -> list[str]:
    """Prose and indented code, with a little of everything else."""
    rng = random.Random(seed)
    documents = []
    for number in range(count):
        prose = " ".join(rng.choices(WORDS, k=60)).capitalize() + ".\n\n"
        code = "".join(f"{' ' * 4 * rng.randrange(4)}def f{rng.randrange(50)}(x, y):\n" for _ in range(12))
        documents.append(prose + code + f"<span>caf\u00e9 \u6f22\u5b57 {number}</span>\t\r\n")
    return documents
