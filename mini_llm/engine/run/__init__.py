"""The parts of a run that need no torch: its directory, files, metrics, environment, signals and progress."""
