"""What every run leaves and needs, without torch: its directory, files, metrics, environment, signals, progress."""
