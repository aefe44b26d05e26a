"""Text that a model writes: token ids in, token ids out, batched, greedily or drawn."""
