"""`python -m scoring MODEL FILE ...`: the scores that suit the model."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mini_llm.corpus.config import STDLIB, CorpusConfig
from mini_llm.corpus.documents import iter_documents
from mini_llm.corpus.fingerprint import source_bytes
from mini_llm.engine.config import build_config, read_yaml
from mini_llm.engine.errors import ConfigError, UserError
from mini_llm.stages import load

from .decoder import score_decoder
from .masked import pseudo_perplexity, score_encoder
from .overlap import Passages
from .pairs import score_pairs
from .samples import describe_samples, write_samples
from .subject import KINDS, load_subject
from .texts import iter_texts

MOST_TRAINING_BYTES = 200 << 20  # of a run's corpus that is searched without being asked to
MOST_FILE_BYTES = 4 << 20  # of a scored file that is looked for in the training data
REAL_TEXTS = 64


@dataclass(frozen=True)
class Request:
    """What to score, and how."""

    files: Sequence[str]
    text: str = "text"
    source: str = "source"
    target: str = "target"
    label: str = "label"
    stride: int | None = None
    most: int | None = None
    samples: int = 16
    sample_tokens: int = 100
    pseudo_tokens: int = 256
    training: Sequence[str] = ()
    seed: int = 0
    batch_tokens: int = 8192
    device: str = "auto"
    dtype: str = "auto"


def score(path: Path, request: Request) -> dict[str, Any]:
    """Return the scores of the model at `path` as a JSON object. Raises the errors of mini_llm.engine.errors."""
    subject = load_subject(path, request.device, request.dtype)
    head = subject.describe()
    if request.stride is not None and subject.kind != "causal":
        raise ConfigError(f"--stride is for decoders; {path} is {KINDS[subject.kind]}. Leave it out")
    if subject.kind == "classifier":
        found = [
            load("finetune", "predicting.score").score(path, file, request.text, request.label)
            for file in request.files
        ]
        return head | {"files": [{"file": file, **row} for file, row in zip(request.files, found, strict=True)]}
    if subject.kind == "seq2seq":
        return head | score_pairs(subject, request.files, request.source, request.target, request.most)
    options = {"most": request.most, "batch_tokens": request.batch_tokens}
    if subject.kind == "masked":
        scores = score_encoder(subject, request.files, request.text, request.seed, **options)
        found = head | scores.as_dict(request.seed, per_byte=False)
        if request.pseudo_tokens:
            parts = (request.files, request.text, request.pseudo_tokens, request.seed)
            found |= pseudo_perplexity(subject, *parts, **options)
        return found
    scores = score_decoder(subject, request.files, request.text, request.stride, **options)
    found = head | {"stride": request.stride or subject.context} | scores.as_dict(request.seed)
    return found | describe_texts(path, request)


def describe_texts(path: Path, request: Request) -> dict[str, Any]:
    """Return the diversity of samples, and what samples and files share with the training data."""
    found: dict[str, Any] = {}
    samples: list[str] = []
    if request.samples:
        samples = write_samples(
            path, request.samples, request.sample_tokens, request.seed, request.device, request.dtype
        )
        real = islice(iter_texts(request.files[0], request.text), REAL_TEXTS)
        found["diversity"] = describe_samples(samples, [document.text for document in real])
    training = training_texts(path, request.training)
    if training is None:
        return found
    # One pass over the training data for all texts.
    looked_for = {file: Passages(list(first_bytes(file, request.text))) for file in request.files}
    if samples:
        looked_for = {"samples": Passages(samples), **looked_for}
    for document in training:
        for passages in looked_for.values():
            passages.add(document)
    return found | {"copied": [{"texts": name, **passages.as_dict()} for name, passages in looked_for.items()]}


def first_bytes(file: str, column: str) -> Iterator[str]:
    """Yield documents of a file, MOST_FILE_BYTES in all."""
    left = MOST_FILE_BYTES
    for document in iter_texts(file, column):
        if left <= 0:
            return
        yield document.text[:left]
        left -= len(document.text.encode())


def training_texts(path: Path, named: Sequence[str]) -> Iterator[str] | None:
    """Return the documents of `named` files, else of the run's corpus; None where it is unknown, gone or large."""
    if named:
        return chain.from_iterable((document.text for document in iter_texts(file)) for file in named)
    run = path.parent if path.name == "model" else path
    try:
        tree = read_yaml(run / "config.yaml").get("corpus") if (run / "config.yaml").is_file() else None
        if not isinstance(tree, dict):
            return None
        config = build_config(CorpusConfig, tree, str(run / "config.yaml"))
        built_in = all(source.path == STDLIB for source in (*config.sources, *config.validation))
        size = 0 if built_in else source_bytes(config)
    except UserError as error:
        print(f"overlap with the training data is not measured: {error}", file=sys.stderr)
        return None
    if size is None or size > MOST_TRAINING_BYTES:
        print(
            "overlap with the training data is not measured, since it is large or not on disk; name files of it with "
            "--training FILE",
            file=sys.stderr,
        )
        return None
    return iter_documents(config, "train")
