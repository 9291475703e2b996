"""GenerateConfig: sampling and stopping. No torch: a wrong setting is reported before torch is imported."""

import math

from pydantic import Field, model_validator

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
    seed: int = Field(0, description="Seed; sample i depends on (seed, i) only.")
    num_samples: int = Field(1, description="Samples per prompt.")
    max_new_tokens: int = Field(200, description="Most tokens to generate per sample.")
    stop: list[str] = Field(default_factory=list, description="Strings that end the text; they are not printed.")

    @model_validator(mode="after")
    def _check_ranges(self) -> "GenerateConfig":
        # NaN fails every comparison, so each condition states what is valid.
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
