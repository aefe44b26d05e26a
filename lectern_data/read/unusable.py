"""Why a file or a row is not a document."""

from collections.abc import Iterable

_FIELDS_NAMED = 8


class UnusableError(Exception):
    """Why a file or a row is not a document."""


def listed(fields: Iterable[str]) -> str:
    """Returns the first names, escaped for a terminal."""
    names = [repr(field)[:40] for field in fields]
    return ", ".join(names[:_FIELDS_NAMED]) + (", ..." if len(names) > _FIELDS_NAMED else "")
