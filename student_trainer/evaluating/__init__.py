"""Evaluations of a model: perplexity, agreement with a teacher, code that runs, other harnesses."""
