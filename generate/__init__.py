"""STAGE 4: generate text with a language model: sampling, the decoder loop, the command line (`python -m generate`)."""

import mini_llm  # noqa: F401  sets up OpenMP before torch is imported
