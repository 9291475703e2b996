"""Equality of results across processes, ZeRO stages and machines, as commands."""
