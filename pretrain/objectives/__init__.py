"""Objectives: token windows in, batches with labels out, as pure functions of (seed, step).

A batch is for this rank alone, but every random choice is made for the whole step and then cut, so that the number of
ranks and micro-batches changes nothing.
"""
