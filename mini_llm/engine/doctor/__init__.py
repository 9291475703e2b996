"""`python -m mini_llm doctor`: what of this machine works, and what mends the rest."""
