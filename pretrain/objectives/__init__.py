"""Training objectives: turn token windows into batches with labels, as pure functions of (seed, step).

causal.py         next-token prediction
masked.py         masked language modelling (BERT)
next_sentence.py  masked language modelling with next-sentence prediction (BERT)
spans.py          span corruption (T5)
pairs.py          text-to-text pairs for an encoder-decoder
windows.py        the order of token windows, shuffled by (seed, epoch)
lengths.py        PairLengths: the size of a set of pairs, for the planner
tensors.py        arrays to tensors

A batch belongs to this rank only, but every random choice is made for the whole step and then split, so the numbers of
ranks and micro-batches do not change the data.
"""
