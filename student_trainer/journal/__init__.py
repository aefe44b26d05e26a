"""What a run writes to its folder: status, events, metrics, checkpoints."""
