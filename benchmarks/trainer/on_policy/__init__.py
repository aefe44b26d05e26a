"""Runs whose student writes: texts, whole steps against TRL, what overlaps, and memory."""
