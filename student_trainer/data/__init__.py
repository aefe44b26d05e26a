"""The rows of a run: datasets opened and checked, split, shuffled and batched."""
