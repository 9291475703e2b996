"""`python -m generate inspect`: show what a model computes for one text, as an HTML page."""
