"""mini-llm: train a tokenizer, pretrain, fine-tune and use small language models.

From Python, three lines each:

    import mini_llm
    model = mini_llm.load("runs/gpt")
    print(model.generate("def read_lines(path):", max_new_tokens=50, temperature=0.7))

    import mini_llm
    classifier = mini_llm.load("runs/gpt-classifier")
    print(classifier.classify(["import numpy as np"])[0].label)

    import mini_llm
    run = mini_llm.pretrain(data="my.txt", budget="1m", **{"optim.lr": 1e-3})
    print(run.scores, run.load().generate("Once "))

    import mini_llm
    run = mini_llm.finetune(model="runs/gpt", data="reviews.csv", budget="1m")
    print(run.scores, run.load().classify(["a fine film"]))

    from mini_llm.sklearn import TextClassifier
    classifier = TextClassifier(model="runs/gpt", budget="1m").fit(texts, labels)
    print(classifier.predict_proba(["a fine film"]))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mini_llm.openmp import wait_briefly

if TYPE_CHECKING:
    from mini_llm.api import Label, LanguageModel, Run, TextClassifier, finetune, load, pretrain

__version__ = "0.2.0"
__all__ = ["Label", "LanguageModel", "Run", "TextClassifier", "finetune", "load", "pretrain"]

# Before anything imports torch, whose OpenMP library reads its settings once.
wait_briefly()


def __getattr__(name: str) -> Any:
    # Looked up on first use: `import mini_llm` alone costs milliseconds.
    if name in __all__:
        return getattr(import_module("mini_llm.api"), name)
    raise AttributeError(f"module 'mini_llm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
