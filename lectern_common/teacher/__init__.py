"""Reaching a teacher: address, channel, replicas, TLS, secrets, and what it says of itself."""
