"""Changes a program from outside, before it starts."""

from typing import Any


def put(owner: Any, name: str, value: Any) -> None:
    """Replaces an attribute of a module or class with `value`.

    Raises:
        AttributeError: the attribute no longer exists, so nothing would change.
    """
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name} to replace")
    setattr(owner, name, value)
