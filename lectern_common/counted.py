"""Numbers with their nouns, for people."""


def counted(number: int, noun: str) -> str:
    """Returns "1 shard", "2 shards", "1,200 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
