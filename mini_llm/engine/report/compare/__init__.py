"""One page that compares several runs: curves over each other, scores and samples beside each other."""
