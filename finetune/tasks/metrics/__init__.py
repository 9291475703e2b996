"""Scores of one kind of prediction, one file each: statistics of each row, and scores from their means."""
