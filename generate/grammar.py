"""Constrain a text to a regular expression or a JSON Schema with llguidance, which masks the tokens of each step."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from mini_llm.engine.errors import ConfigError

from .config import GenerateConfig


class Grammar:
    """A regular expression or a JSON Schema that texts of one tokenizer must match."""

    def __init__(self, trie: Any, config: GenerateConfig, size: int, device: torch.device) -> None:
        """`size` is the number of logits. Raises ConfigError for an invalid expression or schema."""
        self.trie, self.size, self.device = trie, size, device
        if config.regex is not None:
            name, source = f"--regex {config.regex}", LLMatcher.grammar_from_regex(config.regex)
        else:
            name, schema = read_schema(str(config.json_schema))
            # Without free white space, a model that likes spaces would fill the text with them.
            options: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            source = LLMatcher.grammar_from_json_schema(schema, options)
        problem = LLMatcher.validate_grammar(source, trie)
        if problem:
            raise ConfigError(f"{name}: {problem.splitlines()[0]}")
        self.source = source

    def start(self) -> "Matcher":
        """Return a matcher at the beginning of a text."""
        return Matcher(LLMatcher(self.trie, self.source, log_level=0), self.size, self.device)


class Matcher:
    """The state of a grammar in one text."""

    def __init__(self, matcher: Any, size: int, device: torch.device) -> None:
        self.matcher, self.size, self.device = matcher, size, device

    def allowed(self) -> Tensor:
        """Return which tokens (V,) may come next, as booleans. An end token may where the text is a match."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self.size, bitorder="little").astype(bool)
        return torch.from_numpy(mask).to(self.device)

    def push(self, token: int) -> bool:
        """Add a token. Return whether the text is a match that nothing can continue."""
        self.matcher.consume_token(token)
        if self.matcher.is_error():
            reason = self.matcher.get_error().splitlines()[0]
            raise ConfigError(f"this tokenizer cannot spell a text that matches: {reason}")
        return self.matcher.is_stopped()


def read_schema(text: str) -> tuple[str, str]:
    """Return (how to name it in a message, the schema) of a JSON text or a file that holds one. Raises ConfigError."""
    name = "--json-schema"
    if not text.lstrip().startswith(("{", "true", "false")):
        name = f"--json-schema {text}"
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{name}: cannot read this file ({reason}); name a file or write the schema") from None
    try:
        json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name}: not JSON ({error})") from None
    return name, text


def token_trie(tokenizer: Any, size: int, end_ids: Collection[int]) -> Any:
    """Return llguidance's form of a vocabulary with `size` ids. Raises ConfigError if its tokens have no bytes."""
    if not end_ids:
        raise ConfigError("--regex and --json-schema need a tokenizer with an end token, and this one has none")
    spellings = [tokenizer.token_bytes(i) if i < tokenizer.vocab_size else None for i in range(size)]

    class Vocabulary:
        def __init__(self) -> None:
            self.eos_token_id, self.bos_token_id = min(end_ids), tokenizer.bos_id
            self.tokens = [spelling if spelling else b"<special %d>" % i for i, spelling in enumerate(spellings)]
            self.special_token_ids = [i for i, spelling in enumerate(spellings) if not spelling or i in end_ids]

            self.ids = {spelling: i for i, spelling in enumerate(spellings) if spelling}
            self.longest = max(map(len, self.ids), default=0)

        def __call__(self, text: str) -> list[int]:
            """Return tokens that spell exactly `text`, for text that the grammar forces."""
            ids, data = tokenizer.encode(text), text.encode("utf-8", "replace")
            if b"".join(spellings[i] or b"" for i in ids) == data:
                return ids
            # This tokenizer adds a space before a text, so take the longest token at each place.
            ids = []
            while data:
                lengths = range(min(self.longest, len(data)), 0, -1)
                length = next((n for n in lengths if data[:n] in self.ids), 0)
                if not length:
                    break
                ids.append(self.ids[data[:length]])
                data = data[length:]
            return ids

    return LLTokenizer(TokenizerWrapper(Vocabulary()), n_vocab=size, eos_token=sorted(end_ids))
