"""Process 2: one process a run, learning from a teacher over the network."""
