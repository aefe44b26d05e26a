"""A stand-in."""

from collections.abc import Callable, Sequence


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    return [decode([one]) for one in ids]
