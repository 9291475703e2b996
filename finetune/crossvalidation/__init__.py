"""Cross-validation: where rows are few, every row is scored by a model that has not seen it.

plan.py       the folds, their settings and times
run.py        train and score the folds, then train on all rows
scores.py     one table of all folds
commands.py   `python -m finetune cross-validate`
"""
