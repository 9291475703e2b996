"""What a run will be: sizes, memory and time, before any work."""
