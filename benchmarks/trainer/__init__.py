"""The trainer's side: the objective, whole runs against peers, pipelining, memory, a GPU."""
