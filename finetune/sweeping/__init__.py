"""Sweeps: a few settings and seeds in one budget, judged on validation alone.

grid.py       which trials there are
trials.py     train them, choose, train the winner with its test data
commands.py   `python -m finetune sweep`
"""
