"""Checkpoints: their format on disk, saving, resuming, and the model directory at the end."""
