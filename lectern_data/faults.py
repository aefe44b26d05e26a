"""What is left out of a dataset: named, counted, and only up to a share of the documents."""

from lectern_common.errors import InvalidRequest
from lectern_data.documents import LeftOut

MAX_NAMED_FAULTS = 10


class Faults:
    """What is left out, by the scan and, of chats, by the encoder; up to a share."""

    def __init__(self, max_fraction: float, usable: int, left_out: list[LeftOut]) -> None:
        self._left_out = list(left_out)
        self._max_fraction = max_fraction
        self._usable = usable
        self._total = usable + sum(entry.documents for entry in left_out if entry.is_fault)

    def add(self, entries: list[LeftOut]) -> None:
        """Counts documents that were taken for usable."""
        self._left_out += entries
        self._usable -= sum(entry.documents for entry in entries)

    def require_few(self) -> None:
        """Raises InvalidRequest where there are too many, or nothing else."""
        faults = [entry for entry in self._left_out if entry.is_fault]
        named = "; ".join(f"{entry.name}: {entry.reason}" for entry in faults[:MAX_NAMED_FAULTS])
        if len(faults) > MAX_NAMED_FAULTS:
            named += f"; and {len(faults) - MAX_NAMED_FAULTS} more"
        if not self._usable:
            raise InvalidRequest(f"no text in the inputs{': ' + named if named else ''}", "inputs")
        count = sum(entry.documents for entry in faults)
        if count > self._max_fraction * self._total:
            raise InvalidRequest(
                f"{count} of {self._total} documents cannot be used, more than "
                f"--max-fault-fraction {self._max_fraction:g} allows ({named}); leave them out "
                "with --include or --exclude, or raise it",
                "inputs",
            )
