"""Terminal output: live runs, lists of runs, a teacher's status, time left."""
