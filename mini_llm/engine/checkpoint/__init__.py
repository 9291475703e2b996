"""Checkpoints: format on disk, saving, resuming, and exporting the trained model."""
