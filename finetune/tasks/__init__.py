"""Tasks other than single-label classification: one file each, with an objective, a metric and baselines."""
