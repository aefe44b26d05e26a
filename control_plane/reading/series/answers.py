"""A series as JSON values and as CSV."""

import csv
import io
from typing import Any

import numpy as np

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


def _values(column: Array, name: str) -> list[Any]:
    if column.dtype.kind != "f":
        return column.tolist()
    if name == "tokens":
        return [None if np.isnan(value) else int(value) for value in column]
    if name in _AXES:
        column = np.round(column, _AXES[name])
    return [None if value != value else value for value in column.tolist()]


def _inert(key: str) -> str:
    """Returns a key that no spreadsheet takes for a formula."""
    return f"'{key}" if key[:1] in ("=", "+", "-", "@", "\t", "\r") else key
