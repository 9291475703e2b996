"""Training data of a run: its tokenizer, and the token stores of a corpus or encoded pairs of texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn

from mini_llm import stages
from mini_llm.corpus.build import TokenStore, build_store
from mini_llm.engine.batch import Batch
from mini_llm.engine.checkpoint.format import MANIFEST
from mini_llm.engine.device import default_device
from mini_llm.engine.errors import CheckpointError, ConfigError, DataError
from mini_llm.engine.run.directory import find_model
from mini_llm.engine.run.files import content_hash, read_json
from mini_llm.model import HEADS, ModelConfig, load_model
from mini_llm.tokenization.config import TokenizerConfig
from mini_llm.tokenization.load import load_tokenizer

from .config import PretrainConfig
from .objectives.causal import CausalObjective
from .objectives.masked import MaskedObjective
from .objectives.next_sentence import NextSentenceObjective
from .objectives.pairs import EncodedPairs, PairsObjective, encode_pairs
from .objectives.spans import SENTINELS, SpanObjective, span_shape
from .pairs import TextPairs, load_pairs, training_text
from .plan.sizes import Plan, expected_width
from .presets import Shape, config_of, read_preset, shape_of

Objective = CausalObjective | MaskedObjective | SpanObjective | PairsObjective


@dataclass
class Source:
    """The model directory to continue pretraining from, and its configuration."""

    directory: Path
    config: ModelConfig


@dataclass
class Data:
    """Token stores of a corpus, or pairs of texts and their token ids; by part (train, validation)."""

    tokenizer: Any
    shape: Shape
    source: Source | None = None
    stores: dict[str, TokenStore] | None = None
    pairs: TextPairs | None = None
    encoded: dict[str, EncodedPairs] | None = None


def prepare_data(config: PretrainConfig, processes: PartialState, runs: Path) -> Data:
    """Train or load the tokenizer and build the token stores, or encode the pairs; up-to-date files are reused.

    Raises ConfigError for settings, or a tokenizer, that do not suit the model; CheckpointError and ModelDirectoryError
    for `init`; DataError for a corpus without text.
    """
    source = find_source(config.init) if config.init else None
    architecture = source.config if source else None
    shape = shape_of(**(vars(architecture) if architecture else read_preset(config.model)))
    if config.pairs and shape != "seq2seq":
        raise ConfigError(
            f"pairs need an encoder-decoder, and {config.init or config.model} is not one. Try --model t5"
        )
    tokenizer = _tokenizer(config, source, shape, processes, runs)
    if shape == "masked":
        missing = [name for name in ("mask", "cls", "sep") if getattr(tokenizer, f"{name}_id") is None]
        if missing:
            raise ConfigError(
                f"{tokenizer.directory}: this tokenizer has no {' and no '.join(missing)} token, which "
                f"model={config.init or config.model} needs"
            )
    data = Data(tokenizer, shape, source)
    if config.pairs:
        data.pairs = load_pairs(config.pairs, config.corpus, config.seed)
        data.encoded = {part: encode_pairs(getattr(data.pairs, part), tokenizer) for part in ("train", "validation")}
    else:
        data.stores = build_store(config.corpus, tokenizer, runs / "tokens")
    return data


def find_source(init: str) -> Source:
    """The model directory at `init`, which may also be a run. Raises CheckpointError or ModelDirectoryError."""
    directory = find_model(Path(init))
    if directory is None:
        raise CheckpointError(
            f"{init}: no model to continue from (no config.json, no model/config.json). Name a model directory or a "
            "run, or leave init out to train from scratch"
        )
    return Source(directory, config_of(directory))


def _tokenizer(config: PretrainConfig, source: Source | None, shape: Shape, processes: PartialState, runs: Path) -> Any:
    if source is not None:
        tokenizer = load_tokenizer(source.directory, source.config.vocab_size)
        if tokenizer.remark and processes.is_main_process:
            print(tokenizer.remark)
        return tokenizer
    if config.tokenizer:
        return load_tokenizer(config.tokenizer)
    length = config.sizes.max_position_embeddings
    settings = TokenizerConfig(
        corpus=training_text(config.pairs, config.corpus) if config.pairs else config.corpus,
        vocab_size=config.vocab_size,
        hidden_size=expected_width(config, processes.num_processes, default_device(config.runtime.device)),
        encoder=shape == "masked" and config.vocab_size is None,
        sentinels=max(SENTINELS, span_shape(length).spans if length else 0) if shape == "seq2seq" else None,
        tracking=config.tracking,
    )
    say = None if processes.is_main_process else lambda line: None
    base = runs / tokenizer_name(config, settings)
    trained_with = _recorded(runs / config.run_name, "tokenizer_sha256")
    return stages.load("tokenizer", "train").find_or_train(settings, base, say, trained_with)


def data_fingerprint(data: Data, run: Path) -> str:
    """A hash of the training and validation data, wherever they lie."""
    if data.stores is not None:
        return data.stores["train"].fingerprint
    pairs = [*data.pairs.train, None, *data.pairs.validation]
    # Earlier releases hashed the names of the files too.
    with_origins = content_hash(pairs)
    if _recorded(run, "data_fingerprint") == with_origins:
        return with_origins
    return content_hash([pair[:2] if pair else None for pair in pairs])


def _recorded(run: Path, name: str) -> str | None:
    """A text of the metadata of the newest checkpoint of a run, such as the hash of its tokenizer, or None."""
    for directory in sorted(run.glob("checkpoints/step-*"), reverse=True):
        manifest = read_json(directory / MANIFEST)
        if isinstance(manifest, dict) and isinstance(manifest.get(name), str):
            return manifest[name]
    return None


def tokenizer_name(config: PretrainConfig, settings: TokenizerConfig) -> str:
    """Name of a new tokenizer's directory under runs/; a task has its own tokenizer beside the corpus's."""
    task = config.pairs.task if config.pairs else None
    return f"{settings.directory.name}-{task}" if task else settings.directory.name


def make_model(plan: Plan, data: Data) -> nn.Module:
    """The model to train: loaded from the source, or new, without its warm start."""
    if data.source is None:
        return HEADS[data.shape](plan.config)
    return load_model(data.source.directory, head=data.shape, dropout=plan.config.dropout)


def make_objective(config: PretrainConfig, plan: Plan, data: Data) -> tuple[Objective, list[Batch]]:
    """The training objective and the validation batches. Raises DataError when there are no validation batches."""
    # Evaluation keeps no activations, so that twice the rows need no more memory.
    rows, start = 2 * plan.micro_batch_size, plan.config.decoder_start_token_id
    if data.encoded is not None:
        pad_id = plan.config.pad_token_id or 0
        objective = PairsObjective(data.encoded["train"], plan.length, config.seed, pad_id, start)
        return objective, objective.evaluation(data.encoded["validation"], rows)
    train, validation = data.stores["train"], data.stores["validation"]
    if data.shape == "causal":
        objective = CausalObjective(train, plan.length, config.seed)
        held_out = objective.evaluation(validation, plan.length, rows)
    else:
        if data.shape == "seq2seq":
            objective = SpanObjective(train, plan.length, config.seed, data.tokenizer, start)
        else:
            kind = NextSentenceObjective if plan.config.next_sentence else MaskedObjective
            objective = kind(train, plan.length, config.seed, data.tokenizer, config.mlm_probability)
        held_out = objective.evaluation(validation, rows)
    if not held_out:
        raise DataError("the validation text is shorter than one window; raise corpus.validation_fraction")
    return objective, held_out


def objective_name(plan: Plan, data: Data) -> str:
    """The objective in words, for reports."""
    if data.encoded is not None:
        return "text to text"
    if data.shape == "seq2seq":
        return "span corruption"
    return "masked and next sentence" if plan.config.next_sentence else data.shape
