"""The fault campaign: what can happen to a run is done to it, and what is left is compared with an undisturbed run."""
