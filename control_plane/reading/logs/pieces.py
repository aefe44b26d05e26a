"""The next piece of a log, as an event: whole lines, safe to show, from a position on.

A position counts the bytes ever written, see lectern_common/logs.py: it is the id of an event, and
stays right when the log is cut and when the control plane is started anew.
"""

from dataclasses import dataclass
from pathlib import Path

from control_plane.reading.events import event
from control_plane.reading.logs.tail import MAX_TAIL_BYTES, inert_line
from lectern_common.logs import opened_log

MAX_PIECE_BYTES = 64 << 10


@dataclass(frozen=True)
class Piece:
    """The events that follow a position, encoded, and the position after them."""

    begin: int
    end: int
    events: bytes


def next_piece(
    path: Path, position: int, stop: int | None = None, *, whole: bool = False
) -> Piece | None:
    """Returns what follows a position in a log; None if no further line has ended.

    `log` events have `text`; `cut` says how many `bytes` after the position are no longer there;
    `rewind` means that the log is another one, and follows from its start.

    Args:
        path: the log; a missing one is empty.
        position: where the last piece ended.
        stop: a later position, up to which it is read at most.
        whole: a last line that has not ended is text, too.

    Raises:
        CorruptData: the file cannot be read.
    """
    at_most = MAX_PIECE_BYTES if stop is None else min(MAX_PIECE_BYTES, stop - position)
    try:
        with opened_log(path) as log:
            offset = log.offset_of(position)
            rewound = offset > log.size
            begin = 0 if rewound else max(position, log.position_of(offset))
            if log.cut is not None and offset < log.cut.at:
                at_most = min(at_most, log.cut.at - offset)
            data = b"" if rewound else log.read(offset, at_most)
    except FileNotFoundError:
        return None
    data = data[: _length(data, is_full=len(data) == at_most, whole=whole)]
    events = b""
    if rewound:
        events = event("rewind", {}, str(begin))
    elif begin > position:
        events = event("cut", {"bytes": begin - position}, str(begin))
    end = begin + len(data)
    if data:
        events += event("log", {"text": _shown(data)}, str(end))
    return Piece(position, end, events) if events else None


def position_before(path: Path, lines: int) -> int:
    """Returns the position before the last `lines` lines that have ended, as far as a tail goes.

    Raises:
        CorruptData: the file cannot be read.
    """
    try:
        with opened_log(path) as log:
            begin = max(0, log.size - MAX_TAIL_BYTES)
            if log.cut is not None and begin < log.cut.end <= log.size:
                begin = log.cut.end
            data = log.read(begin, MAX_TAIL_BYTES)
            at = data.rfind(b"\n") + 1
            for _ in range(lines):
                if at == 0:
                    break
                at = data.rfind(b"\n", 0, at - 1) + 1
            if at == 0 and begin > 0 and not (log.cut and begin == log.cut.end):
                at = data.find(b"\n") + 1  # the first line lacks its start
            return log.position_of(begin + at)
    except FileNotFoundError:
        return 0


def _length(data: bytes, *, is_full: bool, whole: bool) -> int:
    """Returns how much of a piece is told: whole lines; of an endless line, whole characters."""
    if whole and not is_full:
        return len(data)
    lines = data.rfind(b"\n") + 1
    if lines or not is_full:
        return lines
    starts = (size for size in (1, 2, 3) if data[-size:][:1] >= b"\xc0")
    return len(data) - next(starts, 0)


def _shown(data: bytes) -> str:
    *lines, rest = data.decode(errors="replace").split("\n")
    return "".join(f"{inert_line(line)}\n" for line in lines) + inert_line(rest)
