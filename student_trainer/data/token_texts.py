"""Cuts a decoded text into the texts of its tokens."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"  # what decoding puts in the place of an incomplete character
# Tokens decoded before those that are new: what a token reads as depends only on its neighbours.
_BEFORE = 4
# Tokens that are waited for until the text does not end in an incomplete character.
_MAX_INCOMPLETE = 64


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Returns what each token adds to the text; together they are the text.

    Of a character that is several tokens, the last adds all and those before it nothing. What is
    no character is read as U+FFFD, as `decode` does; if that goes on for more than 64 tokens, a
    character after them may be missing.

    Args:
        ids: of a text.
        decode: returns the text of ids.
    """
    texts: list[str] = []
    first, done = 0, 0  # the texts of ids[:done] are known; ids[first:done] are decoded with more
    for end in range(1, len(ids) + 1):
        text = decode(ids[first:end])
        waits = text.endswith(_REPLACEMENT) and end - done < _MAX_INCOMPLETE
        if waits and end < len(ids):
            continue
        texts += [""] * (end - done - 1) + [text[len(decode(ids[first:done])) :]]
        first, done = max(done - _BEFORE, first), end
    return texts
