"""Clients of the teacher rows: honest, hostile, many at once, far away."""
