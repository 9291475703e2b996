"""The plan of a run before its corpus is read or its tokenizer trained: both sizes are estimated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mini_llm.corpus.config import STDLIB
from mini_llm.corpus.fingerprint import source_bytes
from mini_llm.corpus.stdlib import iter_stdlib_files
from mini_llm.engine.device import resolve_precision
from mini_llm.engine.distributed.deepspeed_config import deepspeed_file, read_deepspeed
from mini_llm.engine.errors import ConfigError
from mini_llm.engine.kernels.load import has_kernels
from mini_llm.engine.muon import orthogonalize_dtype
from mini_llm.tokenization.config import TokenizerConfig, default_vocab_size
from mini_llm.tokenization.load import is_complete, load_tokenizer

from ..config import PretrainConfig
from ..data import find_source, tokenizer_name
from ..objectives.lengths import PairLengths
from ..objectives.spans import SENTINELS
from ..presets import read_preset, shape_of
from .setup import MemorySetup
from .sizes import LONGEST_PAIR, MakePlan, Plan, expected_width, make_plan
from .speed import Speed

# English text and source code with the vocabularies of mini_llm/tokenization/config.py.
BYTES_PER_TOKEN = 3


@dataclass
class DraftTokenizer:
    """Vocabulary size and special ids of a tokenizer that is not trained yet."""

    vocab_size: int
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = 3
    cls_id: int = 5
    sep_id: int = 6


@dataclass
class Draft:
    """A plan, the tokens of the corpus that it assumes, and notes on what was estimated."""

    plan: Plan
    tokens: int
    notes: list[str]


def draft_plan(
    config: PretrainConfig,
    ranks: int,
    device: torch.device,
    tokens: int | None = None,
    rehearse: Callable[[MakePlan], Plan] | None = None,
) -> Draft:
    """The plan that the run would make. `tokens`: size of the corpus, by default estimated from its files.

    rehearse: makes the plan with the speed that it measures; None: nothing is measured. Raises ConfigError when the
    size of the corpus is unknown, DataError for a missing file.
    """
    notes: list[str] = []
    source = find_source(config.init).config if config.init else None
    if tokens is None:
        tokens = estimate_tokens(config)
        if tokens is None:
            raise ConfigError("the size of this corpus is unknown until it is downloaded; give --tokens N")
        notes.append(f"Tokens of the corpus: about {tokens:,}, at {BYTES_PER_TOKEN} bytes each; --tokens N sets it.")
    tokenizer = _draft_tokenizer(config, tokens, ranks, device, notes)
    pairs = None
    if config.pairs is not None:
        longest = config.sizes.max_position_embeddings or LONGEST_PAIR
        pairs = PairLengths(max(1, tokens // (2 * longest)), longest, mean_source=longest, mean_target=longest)
        notes.append("Pairs: planned as if every text filled the context.")

    def make(speed: Speed | None) -> Plan:
        return make_plan(config, source, tokenizer, tokens, pairs, ranks, device, speed)

    return Draft(rehearse(make) if rehearse else make(None), tokens, notes)


def estimate_tokens(config: PretrainConfig) -> int | None:
    """Tokens of the corpus by the size of its files; None for a dataset of the Hub. Raises DataError."""
    corpus = config.pairs.corpus(config.corpus) if config.pairs else config.corpus
    files = [source for source in corpus.sources if source.path != STDLIB]
    found = 0
    if len(files) < len(corpus.sources):
        found += sum(len(text) for _, text in iter_stdlib_files())
    if files:
        size = source_bytes(corpus.model_copy(update={"sources": files, "validation": []}))
        if size is None:
            return None
        found += size
    return max(1, found // BYTES_PER_TOKEN)


def _draft_tokenizer(config: PretrainConfig, tokens: int, ranks: int, device: torch.device, notes: list[str]) -> Any:
    """The tokenizer that the run would use where it exists already, else its estimated size."""
    if config.init:
        source = find_source(config.init)
        return load_tokenizer(source.directory, source.config.vocab_size)
    if config.tokenizer:
        return load_tokenizer(config.tokenizer)
    shape = shape_of(**read_preset(config.model))
    sentinels = SENTINELS if shape == "seq2seq" else None
    corpus = config.pairs.corpus(config.corpus) if config.pairs else config.corpus
    encoder = shape == "masked" and config.vocab_size is None
    settings = TokenizerConfig(corpus=corpus, encoder=encoder, sentinels=sentinels)
    directory = settings.directory.with_name(tokenizer_name(config, settings))
    if config.vocab_size is None and is_complete(directory):
        return load_tokenizer(directory)
    vocabulary = config.vocab_size
    if vocabulary is None:
        width = expected_width(config, ranks, device)
        vocabulary = default_vocab_size(tokens * BYTES_PER_TOKEN, width, encoder) + (sentinels or 0)
        notes.append(f"The tokenizer is not trained yet: about {vocabulary:,} tokens by the default rule.")
    return DraftTokenizer(vocabulary)


def memory_setup(config: PretrainConfig, plan: Plan, ranks: int, stage: int, device: torch.device) -> MemorySetup:
    """What the memory of the planned run depends on."""
    model, rows = plan.config, plan.micro_batch_size
    precision = resolve_precision(config.runtime.precision, device)
    length, target, labels = plan.length, 0, plan.length
    if model.is_encoder_decoder:
        target = labels = max(1, round(plan.row.tokens * plan.row.label_share))
        length = max(1, plan.row.tokens - target)
    elif not model.causal and (not config.clm_warmup or config.init or model.next_sentence):
        labels = max(1, round(config.mlm_probability * length))
    return MemorySetup(
        rows=rows,
        length=length,
        labels=labels,
        target_length=target,
        accumulation=max(1, plan.global_batch_size // (rows * ranks)),
        ranks=ranks,
        stage=stage,
        precision=precision,
        checkpoint_every=config.runtime.gradient_checkpointing,
        cast=stage > 0 and is_cast(config, precision),
        muon=config.optim.name != "adamw",
        padded=config.pairs is not None,
        device=device.type,
        kernels=has_kernels(device),
        muon_itemsize=orthogonalize_dtype(device, precision).itemsize,
        logit_rows=plan.logit_rows,
        attention=plan.attention,
    )


def is_cast(config: PretrainConfig, precision: str) -> bool:
    """Whether DeepSpeed would cast the model to half precision (mini_llm/engine/distributed/deepspeed_config.py)."""
    path = deepspeed_file(config.runtime.deepspeed)
    return precision == "fp16" or (path is not None and read_deepspeed(path).get("bf16", {}).get("enabled") is True)
