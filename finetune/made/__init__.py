"""Tasks that are made from text without labels: the built-in one, and that of a user's own text."""
