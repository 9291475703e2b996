"""What the last stages of `make pipeline` do with the text that the models were trained on.

python -m finetune.pipeline task DATA    prints the classifier's data: DATA itself, or stdlib, and why to standard error
python -m finetune.pipeline prompt DATA  prints the first words of a text of DATA
python -m finetune.pipeline text ...     reads labelled data with the settings of `python -m finetune`, before a
                                         pretraining that takes minutes, and prints a file with its texts, if they are
                                         enough to pretrain on
"""

import json
import sys
from pathlib import Path

from mini_llm.corpus.config import CorpusConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.corpus.report import ReadReport
from mini_llm.corpus.tables import iter_rows
from mini_llm.engine.errors import UserError
from mini_llm.engine.run.files import content_hash, write_atomic

from .__main__ import read_settings
from .data import load_examples
from .data_config import BUILT_IN, DataConfig
from .made.passages import is_plain_text, load_passages
from .tasks.registry import SINGLE_LABEL, detect

WORDS = 4
# Texts of the data that are better to pretrain on than the built-in corpus, in characters, and where they are stored.
ENOUGH, TEXTS = 2_000_000, Path("runs/texts")


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


def write_text(arguments: list[str], folder: Path = TEXTS) -> Path | None:
    """Write the training and unlabelled texts of a fine-tuning run into `folder`, for its pretraining, and return the
    file; None if they are fewer than ENOUGH characters, or the data is not a table with one label per text.

    Texts that will be scored are not among them. Raises ConfigError and DataError as the run would.
    """
    config = read_settings([word for word in arguments if not word.startswith("-")], {})
    # Models of another task than one label per text read their data in other ways.
    if config.task not in ("auto", SINGLE_LABEL) or detect(config.data) != SINGLE_LABEL:
        return None
    splits = load_examples(config.data)
    texts = [example.text for example in splits.train] + splits.unlabelled
    if config.data.path == BUILT_IN or is_plain_text(config.data) or sum(map(len, texts)) < ENOUGH:
        return None
    file = folder / content_hash(texts)[:8] / f"{config.data.name}.jsonl"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    return file


def main(what: str, *arguments: str) -> int:
    """Print the answer and return the exit code. Prints nothing for data that no reader understands."""
    if what == "text":
        try:
            file = write_text(list(arguments))
        except UserError as error:
            print(f"finetune: {error}", file=sys.stderr)
            return error.exit_code
        if file is not None:
            print(f"the model is pretrained on the texts of the data ({file})", file=sys.stderr)
            print(file)
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
