"""STAGE 2: text -> token store -> pretrained model directory, for a decoder (causal) or an encoder (masked)."""

import mini_llm  # noqa: F401  sets up OpenMP before torch is imported
