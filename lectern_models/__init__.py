"""Causal language models for both teacher and student: loading, output head, parity probe.

The only package with torch that two processes share; it knows nothing of the wire or of runs.
"""
