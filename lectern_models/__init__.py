"""Causal language models as both teacher and student need them: loading, head, parity probe.

The one package with torch that two processes share; it knows neither wire nor run.
"""
