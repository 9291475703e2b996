"""Initial embeddings from corpus statistics."""
