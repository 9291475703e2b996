"""Warm start: initial embeddings from corpus statistics."""
