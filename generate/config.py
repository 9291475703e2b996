"""How text is generated: the sampler and its bounds, and when to stop. Free of torch: a wrong flag fails at once."""

import math

from pydantic import Field, model_validator

from mini_llm.engine.config import Config


class GenerateConfig(Config):
    """Settings of one `python -m generate`; every field has a flag of the same name. Wrong values raise ConfigError."""

    temperature: float = 0.8  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    num_samples: int = 1
    max_new_tokens: int = 200
    stop: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_ranges(self) -> "GenerateConfig":
        # NaN fails every comparison, so each condition states what is allowed.
        rules = {
            "temperature": (0 <= self.temperature < math.inf, "must be 0 (greedy) or a positive number"),
            "top_k": (self.top_k >= 0, "must be 0 (all tokens) or the number of tokens to choose from"),
            "top_p": (0 < self.top_p <= 1, "must be above 0 and at most 1 (all tokens)"),
            "min_p": (0 <= self.min_p < 1, "must be at least 0 (all tokens) and below 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "must be a positive number (1: none)"),
            "num_samples": (self.num_samples >= 1, "must be at least 1"),
            "max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1"),
        }
        for name, (allowed, rule) in rules.items():
            if not allowed:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: {rule}")
        if "" in self.stop:
            raise ValueError("--stop '': a stop string must not be empty")
        return self
