"""The sweeps of W&B's file format, offline, in sequence and inside one budget.

file.py     reads a sweep file; its trials and their command lines
rounds.py   divides the budget among the trials; successive halving
trials.py   runs the trials, resumes, and collects the results
page.py     the table and the page
"""
