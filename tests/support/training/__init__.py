"""Training in tests: the loop in memory, whole runs on tiny models, ranks, a fake teacher."""
