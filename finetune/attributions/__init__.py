"""Read the errors of a classifier: the most confident mistakes with token attributions, and suspected label errors.

gradients.py   integrated gradients of a logit difference
mistakes.py    which rows to show, and their words
page.py        errors.html
commands.py    `python -m finetune errors`
"""
