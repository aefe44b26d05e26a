"""Tokens on disk and their meaning: shards, token-to-id maps, hashes of weights."""
