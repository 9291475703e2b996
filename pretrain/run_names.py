"""Print the names of the runs that belong to a corpus, one for each model, as `make` needs them.

python -m pretrain.run_names PATH gpt mlm     gpt-notes mlm-notes; gpt-notes-2 where runs/gpt-notes has other data
"""

import sys
from pathlib import Path

from mini_llm.corpus.config import CorpusConfig
from mini_llm.engine.run.inputs import own_name


def run_names(path: str, models: list[str], runs: Path = Path("runs")) -> list[str]:
    """Names of the runs of `models` (or "tokenizer") on the corpus at `path`; an empty path is the built-in corpus."""
    if not path:
        return models
    corpus = CorpusConfig(sources=path)  # ty: ignore[invalid-argument-type]
    names = ["-".join(filter(None, (model, corpus.name))) for model in models]
    return [own_name(name, [source.path for source in corpus.sources], runs) for name in names]


if __name__ == "__main__":
    print(*run_names(sys.argv[1].strip(), sys.argv[2:]))
