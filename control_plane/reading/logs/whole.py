"""A whole log as it lies on the disk, or a range of its bytes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lectern_common.errors import CorruptData
from lectern_common.logs import Cut, opened_log

BLOCK_BYTES = 256 << 10
_RANGE = re.compile(r"^bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))$")


@dataclass(frozen=True)
class WholeLog:
    """A log as it was at one moment. What is appended later is not part of it.

    Attributes:
        size: in bytes; 0 if there is no log.
        tag: differs whenever the content does; a strong entity tag.
    """

    path: Path
    size: int
    tag: str
    cut: Cut | None

    @classmethod
    def of(cls, path: Path) -> "WholeLog":
        """Looks at a file. Raises CorruptData if it cannot be read."""
        try:
            with opened_log(path) as log:
                tag = "-".join(f"{number:x}" for number in log.version)
                return cls(path, log.size, f'"{tag}"', log.cut)
        except FileNotFoundError:
            return cls(path, 0, '"none"', None)

    def blocks(self, begin: int, end: int) -> Iterator[bytes]:
        """Yields the bytes from one offset up to another.

        Raises:
            CorruptData: the log was cut or removed meanwhile, so that they are not those of one
                log: what was sent must not be taken for whole.
        """
        while begin < end:
            try:
                with opened_log(self.path) as log:
                    if log.cut != self.cut or log.size < self.size:
                        raise CorruptData(f"{self.path.name} was cut while it was read")
                    block = log.read(begin, min(BLOCK_BYTES, end - begin))
            except FileNotFoundError:
                raise CorruptData(f"{self.path.name} was removed while it was read") from None
            begin += len(block)
            yield block


class Unsatisfiable(Exception):
    """The range begins behind the end."""


def range_of(header: str, size: int) -> tuple[int, int] | None:
    """Returns the first byte of a Range header and the one after the last; None means all.

    All is also the answer to more than one range, to other units, and to what is no range.

    Raises:
        Unsatisfiable: no byte of the file lies in the range.
    """
    found = _RANGE.match(header.replace(" ", ""))
    if found is None:
        return None
    if found[3] is not None:
        begin, end = max(0, size - int(found[3])), size
    else:
        begin, last = int(found[1]), found[2]
        if last and int(last) < begin:
            return None
        end = min(size, int(last) + 1) if last else size
    if begin >= end:
        raise Unsatisfiable
    return begin, end
