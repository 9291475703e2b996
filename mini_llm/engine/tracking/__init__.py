"""The record of a run in its directory and in Weights & Biases."""
