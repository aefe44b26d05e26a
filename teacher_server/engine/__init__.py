"""Computes a teacher's answers: the Engine interface, its implementations, a model's facts."""
