"""What a run keeps: status, events, metrics, checkpoints."""
