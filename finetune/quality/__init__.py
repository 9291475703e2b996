"""Checks of labelled texts before training: labels, duplicates, leaks between the splits, overlap with pretraining."""
