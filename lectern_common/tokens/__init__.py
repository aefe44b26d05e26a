"""Token shards on disk, token-to-id maps, and hashes of model weights."""
