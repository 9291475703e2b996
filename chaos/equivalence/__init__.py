"""Commands that compare training across ranks, ZeRO stages and machines with training in one process."""
