"""Changing a program from outside, before it starts."""

from typing import Any


def put(owner: Any, name: str, value: Any) -> None:
    """Puts `value` in the place of an attribute of a module or class.

    Raises:
        AttributeError: there is no such thing any more, so nothing would be changed.
    """
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name} to be changed")
    setattr(owner, name, value)
