"""What makes a small classifier good: how much it reads, how it starts, and what it is pooled with."""
