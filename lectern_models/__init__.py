"""Causal language models as teacher and student both need them: loading, body and head, parity probe.

The one package with torch that two processes share; it knows neither wire nor run.
"""
