"""`python -m generate inspect`: what a model computes for one text, as a page."""
