"""GenerateConfig: sampling and stopping. No torch: a wrong setting is reported before torch is imported."""

import json
import math
from typing import Any

from pydantic import Field, field_validator, model_validator

from mini_llm.engine.config import Config


class GenerateConfig(Config):
    """Settings of `python -m generate`; every field also has an option of the same name."""

    temperature: float = Field(0.8, description="Sampling temperature; 0: greedy.")
    top_k: int = Field(0, description="Sample from the K most likely tokens; 0: from all.")
    top_p: float = Field(0.95, description="Sample from the most likely tokens that make up this probability.")
    min_p: float = Field(0.0, description="Drop tokens below this share of the most likely token's probability.")
    repetition_penalty: float = Field(
        1.0, description="Above 1: tokens that the prompt or the text contains become less likely."
    )
    typical_p: float = Field(
        1.0, description="Sample from the tokens of most typical surprise that make up this probability (Meister 2022)."
    )
    presence_penalty: float = Field(
        0.0, description="Subtract this from the logit of each token that the generated text contains (OpenAI)."
    )
    frequency_penalty: float = Field(
        0.0,
        description="Subtract this from a token's logit once for each time the generated text contains it (OpenAI).",
    )
    no_repeat_ngram_size: int = Field(
        0, description="Never generate N consecutive tokens that the prompt or the text already contains; 0: off."
    )
    logit_bias: dict[str, float] = Field(
        default_factory=dict,
        description="Add these values to the logits of texts, with and without a space before them.",
    )
    regex: str | None = Field(None, description="Generate only text that matches this regular expression as a whole.")
    json_schema: str | None = Field(
        None, description="Generate only JSON that follows this JSON Schema: a file or the schema itself."
    )
    num_beams: int = Field(
        1, description="Above 1: beam search of this width in place of sampling; num_samples returns the best texts."
    )
    length_penalty: float = Field(
        1.0, description="Beam search: divide a log-probability by length ** this; above 0 favors longer texts."
    )
    logprobs: bool = Field(False, description="Report log-probabilities of the generated tokens in JSON output.")
    seed: int = Field(0, description="Seed; sample i of a prompt depends on (seed, i) only.")
    num_samples: int = Field(1, description="Samples per prompt.")
    min_new_tokens: int = Field(
        0, description="Do not end the text before this number of tokens (stop strings still do)."
    )
    max_new_tokens: int = Field(200, description="Most tokens to generate per sample.")
    lookup: int = Field(
        0, description="Guess up to N next tokens from earlier text and check them in one pass, same text; 0: off."
    )
    stop: list[str] = Field(default_factory=list, description="Strings that end the text; they are not printed.")

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_as_text(cls, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check_ranges(self) -> "GenerateConfig":
        # NaN fails every comparison, so each condition states what is valid.
        rules = {
            "temperature": (0 <= self.temperature < math.inf, "must be 0 (greedy) or a positive number"),
            "top_k": (self.top_k >= 0, "must be 0 (all tokens) or the number of tokens to choose from"),
            "top_p": (0 < self.top_p <= 1, "must be above 0 and at most 1 (all tokens)"),
            "min_p": (0 <= self.min_p < 1, "must be at least 0 (all tokens) and below 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "must be a positive number (1: none)"),
            "typical_p": (0 < self.typical_p <= 1, "must be above 0 and at most 1 (all tokens)"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "must be a number (0: none)"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "must be a number (0: none)"),
            "no_repeat_ngram_size": (self.no_repeat_ngram_size >= 0, "must be 0 (off) or a number of tokens"),
            "num_beams": (self.num_beams >= 1, "must be at least 1 (1: no beam search)"),
            "length_penalty": (math.isfinite(self.length_penalty), "must be a number (0: none)"),
            "num_samples": (self.num_samples >= 1, "must be at least 1"),
            "lookup": (self.lookup >= 0, "must be 0 (off) or a number of tokens"),
            "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1"),
            "min_new_tokens": (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                f"must be between 0 and max_new_tokens ({self.max_new_tokens})",
            ),
        }
        for name, (allowed, rule) in rules.items():
            if not allowed:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: {rule}")
        if "" in self.stop:
            raise ValueError("--stop '': a stop string must not be empty")
        for text, value in self.logit_bias.items():
            if not text or not math.isfinite(value):
                raise ValueError(
                    f"--logit-bias {text}={value}: must be a text and a finite number, such as --logit-bias the=-100"
                )
        if 1 < self.num_beams < self.num_samples:
            raise ValueError(f"--num-samples {self.num_samples}: at most the number of beams ({self.num_beams})")
        if self.regex is not None and self.json_schema is not None:
            raise ValueError("--regex and --json-schema exclude each other; leave one out")
        if self.num_beams > 1 and (self.regex is not None or self.json_schema is not None):
            raise ValueError("--num-beams does not work together with --regex or --json-schema; leave it out")
        return self
