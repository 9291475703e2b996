"""STAGE 1: train a tokenizer on text.

sample.py  draw_sample: a seeded sample of a corpus in bounded memory
place.py   finds the tokenizer of a corpus by content
train.py   train_tokenizer: sample, train, check, report, publish
report.py  metrics on held-out text, and a picture of how a sentence is tokenized

python -m tokenizer --data my/texts
"""

import mini_llm  # noqa: F401  sets up OpenMP before torch is imported
