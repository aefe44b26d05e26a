"""Assembles a dataset folder from pieces, and publishes it atomically."""
