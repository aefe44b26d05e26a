"""Reaching a teacher: address, channel, replicas, TLS, secrets, and its figures."""
