"""Process 2: trains one student per process, from a teacher over the network."""
