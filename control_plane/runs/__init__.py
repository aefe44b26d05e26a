"""Runs as database rows: stored, changed, queried, deleted."""
