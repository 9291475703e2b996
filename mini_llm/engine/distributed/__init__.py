"""Training on several processes: launch, DeepSpeed ZeRO, collectives, and ranks that hang or die."""
