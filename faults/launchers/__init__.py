"""Faults of backends that start trainers elsewhere, tried on real schedulers."""
