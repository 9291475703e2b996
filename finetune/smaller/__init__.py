"""Smaller classifiers: distilled students, packed weights, pruned weights and heads, and what to deploy.

subnetwork.py   a model made of some layers, channels, heads and neurons of another
importance.py   which heads, neurons and channels the loss depends on
shape.py        the sizes of a student
distil.py       train a student on the teacher's probabilities
variants.py     write the variants of a classifier
measure.py      size, accuracy and latency of each variant, the verdict
page.py         the table and the Pareto picture
"""
