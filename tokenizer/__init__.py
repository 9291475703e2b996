"""STAGE 1: text in, a tokenizer directory out.

sample.py  a seeded sample of a corpus in bounded memory
train.py   train_tokenizer: sample, train, check, report, publish
report.py  what it is worth on held-out text, and the picture of how a sentence is cut

python -m tokenizer --data my/texts
"""
