"""Numbers and times in words, for people."""


def counted(number: int, noun: str) -> str:
    """Returns "1 shard", "2 shards", "1,200 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(hours: float) -> str:
    """Returns "40 s", "12 min", "3.4 h" or "2.1 days"."""
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
