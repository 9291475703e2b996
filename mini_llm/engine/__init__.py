"""What the training stages share: configuration, runtime, optimizer, schedule, the loop, checkpoints, tracking."""
