"""Tasks: evaluations, exports and publications of runs, and recordings of teachers."""
