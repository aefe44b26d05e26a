"""Counts and names the documents that are left out of a dataset, and limits their share."""

import math
import re
from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath

from lectern_common.errors import InvalidRequest
from lectern_common.words import counted
from lectern_data.read.documents import LeftOut
from lectern_data.read.rows import JSON_SUFFIXES

MAX_REASONS = 5
MAX_NAMES = 5
MAX_PATTERNS = 5
_ENDING = re.compile(r"\.\w+", re.ASCII)


class Faults:
    """The documents left out by the scan and, for chats, by the encoder; limits their share.

    `used_endings` are those of files with usable documents. Of other endings, nothing is lost by
    leaving all their files out, so a refusal says with which patterns. None means unknown.
    """

    def __init__(
        self,
        max_fraction: float,
        usable: int,
        left_out: list[LeftOut],
        used_endings: Collection[str] | None = None,
    ) -> None:
        self._left_out = list(left_out)
        self._max_fraction = max_fraction
        self._usable = usable
        self._used_endings = used_endings
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
            remedy = _remedy(faults, self._used_endings)
            share = math.ceil(1000 * count / self._total) / 1000
            raise InvalidRequest(
                f"{count:,} of {counted(self._total, 'document')} cannot be used, more than "
                f"--max-fault-fraction {self._max_fraction:g} allows ({reasons(faults)}); "
                f"{remedy}, or set --max-fault-fraction {share:g} to skip them",
                "inputs",
            )


def reasons(entries: list[LeftOut]) -> str:
    """Returns names under each of the commonest reasons, and how many more there are."""
    named: dict[str, list[str]] = {}
    for entry in entries:
        named.setdefault(entry.reason, []).append(entry.name)
    said = [
        ", ".join(names[:MAX_NAMES])
        + (f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else "")
        + f": {reason}"
        for reason, names in sorted(named.items(), key=lambda item: -len(item[1]))[:MAX_REASONS]
    ]
    if len(named) > MAX_REASONS:
        said.append(f"and {counted(len(named) - MAX_REASONS, 'other reason')}")
    return "; ".join(said)


def _remedy(faults: list[LeftOut], used_endings: Collection[str] | None) -> str:
    """Returns what to do: fix rows, leave files out, or both.

    A .json file without any usable row, such as a package.json, is a file to leave out.
    """
    has_rows = has_files = False
    useless = Counter[str]()
    for entry in faults:
        file, is_row, _ = entry.name.rpartition("#")  # file#row, see Document
        path = PurePosixPath(file if is_row else entry.name)
        is_useless = (
            used_endings is not None
            and len(path.parts) > 1  # inside a folder
            and _ENDING.fullmatch(path.suffix) is not None
            and path.suffix not in used_endings
        )
        if is_row and not (is_useless and path.suffix.lower() in JSON_SUFFIXES):
            has_rows = True
            continue
        has_files = True
        if is_useless:
            useless[path.suffix] += entry.documents
    patterns = "".join(f" --exclude '*{end}'" for end, _ in useless.most_common(MAX_PATTERNS))
    ways = ["fix these rows"] if has_rows else []
    if has_files:
        ways.append(f"leave these files out (inside folders with{patterns or ' --exclude'})")
    return " and ".join(ways)
