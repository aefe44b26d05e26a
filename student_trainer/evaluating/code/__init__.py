"""Code that a model writes: problems, generated answers, and pass@k."""
