"""Benchmarks: each is a command that prints its measurements next to those of a peer or a limit."""
