"""Fault tests on real processes over real sockets: `make faults`."""
