"""What a run will be: its sizes, memory and time, before any work is done."""
