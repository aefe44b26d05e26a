"""Sweeps: runs of one base spec that are made together, and compared by one metric."""
