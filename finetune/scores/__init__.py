"""Scores of a classifier: intervals, calibration, abstention, comparison, suspected label errors."""
