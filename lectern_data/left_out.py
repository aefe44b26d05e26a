"""Counts and names the documents that are left out of a dataset, and limits their share."""

import math

from lectern_common.errors import InvalidRequest
from lectern_common.words import counted
from lectern_data.read.documents import LeftOut

MAX_REASONS = 5
MAX_NAMES = 5


class Faults:
    """The documents left out by the scan and, for chats, by the encoder; limits their share."""

    def __init__(self, max_fraction: float, usable: int, left_out: list[LeftOut]) -> None:
        self._left_out = list(left_out)
        self._max_fraction = max_fraction
        self._usable = usable
        self._total = usable + sum(entry.documents for entry in left_out if entry.is_fault)

    def add(self, entries: list[LeftOut]) -> None:
        """Adds documents that had been counted as usable."""
        self._left_out += entries
        self._usable -= sum(entry.documents for entry in entries)

    def require_few(self) -> None:
        """Raises InvalidRequest if there are too many, or nothing else."""
        if not self._usable:
            why = f" ({reasons(self._left_out)})" if self._left_out else ""
            raise InvalidRequest(f"no text in the inputs{why}", "inputs")
        faults = [entry for entry in self._left_out if entry.is_fault]
        count = sum(entry.documents for entry in faults)
        if count > self._max_fraction * self._total:
            share = math.ceil(1000 * count / self._total) / 1000
            raise InvalidRequest(
                f"{count:,} of {counted(self._total, 'document')} cannot be used, more than "
                f"--max-fault-fraction {self._max_fraction:g} allows ({reasons(faults)}); "
                f"{_remedy(faults)}, or set --max-fault-fraction {share:g} to skip them",
                "inputs",
            )


def reasons(entries: list[LeftOut]) -> str:
    """Returns the first names under each of the first reasons, and how many more there are."""
    named: dict[str, list[str]] = {}
    for entry in entries:
        named.setdefault(entry.reason, []).append(entry.name)
    said = [
        ", ".join(names[:MAX_NAMES])
        + (f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else "")
        + f": {reason}"
        for reason, names in list(named.items())[:MAX_REASONS]
    ]
    if len(named) > MAX_REASONS:
        said.append(f"and {counted(len(named) - MAX_REASONS, 'other reason')}")
    return "; ".join(said)


def _remedy(faults: list[LeftOut]) -> str:
    rows = ["#" in entry.name for entry in faults]  # file#row, see Document
    ways = []
    if any(rows):
        ways.append("fix these rows")
    if not all(rows):
        ways.append("leave these files out (inside folders with --exclude)")
    return " and ".join(ways)
