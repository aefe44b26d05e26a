"""A series as JSON values and as CSV."""

import csv
import io
import math
from typing import Any

from numpy.typing import NDArray

from control_plane.reading.series.stats import Array

_AXES = {"seconds": 3, "time": 3}  # digits after the point
COLUMNS = (
    *("step", "first_step", "mean", "min", "max", "count", "non_finite"),
    *("tokens", "seconds", "time"),
)


def as_columns(buckets: Array) -> dict[str, list[Any]]:
    """Returns a list for each of COLUMNS; None stands for what is not known or not finite."""
    return {name: _values(buckets[name], name) for name in COLUMNS}


def as_csv(series: dict[str, Array]) -> str:
    """Returns a header, and a row for each bucket: its key, then COLUMNS; unknown is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", *COLUMNS])
    for key, buckets in series.items():
        columns = as_columns(buckets).values()
        writer.writerows([_inert(key), *row] for row in zip(*columns, strict=True))
    return text.getvalue().encode(errors="backslashreplace").decode()


def _values(column: NDArray[Any], name: str) -> list[Any]:
    values: list[Any] = column.tolist()
    if column.dtype.kind != "f":
        return values
    if name == "tokens":
        return [None if math.isnan(value) else int(value) for value in values]
    if name in _AXES:
        values = [round(value, _AXES[name]) for value in values]
    return [None if math.isnan(value) else value for value in values]


def _inert(key: str) -> str:
    """Returns a key that no spreadsheet takes for a formula."""
    return f"'{key}" if key[:1] in ("=", "+", "-", "@", "\t", "\r") else key
