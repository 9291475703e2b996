"""Many processes: launch, DeepSpeed ZeRO, collectives, and peers that hang or die."""
