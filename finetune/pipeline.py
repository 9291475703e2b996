"""What the last stages of `make pipeline` do with the text that the models were trained on.

python -m finetune.pipeline task DATA    prints the classifier's data: DATA itself, or stdlib, and why to standard error
python -m finetune.pipeline prompt DATA  prints the first words of a text of DATA
python -m finetune.pipeline check ...    reads labelled data with the settings of `python -m finetune`, before a
                                         pretraining that takes minutes
"""

import sys

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import iter_rows
from mini_llm.engine.errors import UserError

from .__main__ import read_settings
from .data import load_examples
from .data_config import BUILT_IN, DataConfig
from .made.passages import is_plain_text, load_passages
from .tasks.registry import SINGLE_LABEL, detect

WORDS = 4


def choose_data(path: str) -> tuple[str, str]:
    """Return (data.path, reason) for a classifier that belongs to the text at `path`."""
    config = DataConfig(path=path)
    try:
        if is_plain_text(config):
            load_passages(config)
            return path, "it has no labels, so that the classifiers tell its files or its halves apart"
        for row, values in enumerate(iter_rows(path, None, [config.text, config.label])):
            if values[config.label] is not None:
                return path, f"the classifiers learn its column '{config.label}'"
            if row > 100:
                break
        reason = f"its column '{config.label}' is empty"
    except UserError as error:
        reason = str(error)
    return BUILT_IN, f"no task can be made from it ({reason}); the classifiers learn the built-in task"


def first_words(path: str) -> str:
    """Return the first words of the first document, to be continued by a model."""
    text = next(iter_documents(CorpusConfig(sources=path), "train", ReadReport()))
    line = next((line for line in text.splitlines() if len(line.split()) >= WORDS), text)
    return " ".join(line.split()[:WORDS])[:200]


def check(arguments: list[str]) -> None:
    """Read the data of a fine-tuning run. Raises ConfigError and DataError as the run would."""
    config = read_settings([word for word in arguments if not word.startswith("-")], {})
    # Models of another task than one label per text read their data in other ways.
    if config.task in ("auto", SINGLE_LABEL) and detect(config.data) == SINGLE_LABEL:
        load_examples(config.data)


def main(what: str, *arguments: str) -> int:
    """Print the answer and return the exit code. Prints nothing for data that no reader understands."""
    if what == "check":
        try:
            check(list(arguments))
        except UserError as error:
            print(f"finetune: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    path = arguments[0]
    if what == "task":
        data, reason = choose_data(path)
        print(f"{path}: {reason}", file=sys.stderr)
        print(data)
        return 0
    try:
        print(first_words(path))
    except UserError:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
