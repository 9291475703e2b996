"""Fault campaign: injects faults into real runs and compares the result byte by byte with an undisturbed run."""
