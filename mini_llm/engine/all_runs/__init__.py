"""Commands over the runs of a folder: list, show, compare, check, remove, where a model comes from, and watch."""
