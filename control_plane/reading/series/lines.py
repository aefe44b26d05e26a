"""Lines of metrics.jsonl as numbers: the step, the other x axes, and the value of each key."""

import json
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from lectern_common.json_lines import MAX_COUNT, step_of

# Not metrics: the x axes of charts, and the list of keys whose values were not finite.
BESIDE_METRICS = frozenset({"step", "time", "progress/tokens", "progress/seconds", "non_finite"})
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Line:
    """A complete line that has a step.

    Attributes:
        step: steps finished.
        tokens, seconds: trained on and trained for so far; nan if it does not say.
        time: Unix seconds; nan if it does not say.
        values: the number of each key; nan or infinite if it was not finite.
        end: the offset of its end in the file.
    """

    step: int
    tokens: float
    seconds: float
    time: float
    values: dict[str, float]
    end: int


@dataclass(frozen=True)
class Read:
    """Lines that were read, where the last of them ends, and the CRC-32 of all their text."""

    lines: list[Line]
    end: int
    check: int


def read_lines(
    file: BinaryIO, start: int, *, limit: int | None = None, end: int | None = None
) -> Read:
    """Returns the complete lines from the offset `start` on; those without a step are left out.

    Args:
        file: metrics.jsonl.
        start: where a line begins.
        limit: at most so many lines; None means all.
        end: where the last line ends; None means the end of the file.
    """
    file.seek(start)
    lines: list[Line] = []
    offset, check = start, 0
    while (limit is None or len(lines) < limit) and (end is None or offset < end):
        raw = file.readline()
        if not raw.endswith(b"\n"):
            break
        offset, check = offset + len(raw), zlib.crc32(raw, check)
        line = _parsed(raw, offset)
        if line is not None:
            lines.append(line)
    return Read(lines, offset, check)


def _parsed(raw: bytes, end: int) -> Line | None:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    step = step_of(record)
    if step is None:
        return None
    values = {
        key: number
        for key, value in record.items()
        if (number := _number(value)) is not None and key not in BESIDE_METRICS
    }
    # Releases that wrote no progress/tokens wrote the same number under another name.
    tokens = record.get("progress/tokens", record.get("data/tokens_seen"))
    seconds, time = record.get("progress/seconds"), record.get("time")
    return Line(step, _axis(tokens), _axis(seconds), _axis(time), values, end)


def _axis(value: Any) -> float:
    number = _number(value)
    return NAN if number is None or not -MAX_COUNT < number < MAX_COUNT else number


def _number(value: Any) -> float | None:
    """Returns the value as a float; None unless it is a number, or null, which was not finite."""
    if type(value) is float:
        return value
    if value is None:
        return NAN
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return NAN
