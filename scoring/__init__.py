"""Stage 5: score a trained model, compare models, watch for drift, measure the speed of generation."""

import mini_llm  # noqa: F401  sets up OpenMP before torch is imported
