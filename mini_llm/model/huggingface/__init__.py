"""Hugging Face model directories: reading, writing, and the layout of each family."""
