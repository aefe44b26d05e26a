"""A dataset folder put together from pieces, and published whole."""
