"""What a chart marks at a step: checkpoints, restarts, and values that were not finite."""

from collections.abc import Sequence
from typing import Any

from control_plane.reading.series.query import Steps
from lectern_common.errors import CorruptData
from lectern_common.json_lines import MAX_COUNT, last_json_lines, step_of
from lectern_common.run.folder import RunFolder

MAX_MARKS = 200
MAX_EVENT_BYTES = 1 << 20
Mark = dict[str, Any]


def marks_of(
    folder: RunFolder, non_finite: Sequence[tuple[int, float | None]], within: Steps
) -> list[Mark]:
    """Returns marks {"kind", "step", "time"} in step order, at most MAX_MARKS of each kind.

    Args:
        folder: its newest events name the checkpoints and restarts.
        non_finite: (step, Unix time or None) of values that were not finite.
        within: leaves out other steps.
    """
    checkpoints: dict[int, float | None] = {}
    restarts: list[tuple[int, float | None]] = []
    has_begun = False
    first_step = _first_step(folder)
    for event in last_json_lines(folder.events_path, MAX_EVENT_BYTES):
        step = step_of(event)
        if step is None or not within.first <= step <= within.last:
            has_begun = has_begun or step is not None
            continue
        at = event.get("time")
        is_time = isinstance(at, int | float) and abs(at) < MAX_COUNT
        time = float(at) if is_time else None
        if event.get("kind") == "checkpoint":
            checkpoints[step] = time
        elif event.get("kind") == "assembled" and (has_begun or step > first_step):
            # A trainer says so when it is ready: the first time the run begins, then it restarts.
            restarts.append((step, time))
        has_begun = True
    kinds = {
        "checkpoint": sorted(checkpoints.items()),
        "restart": sorted(restarts, key=lambda mark: mark[0]),
        "non_finite": sorted(non_finite, key=lambda mark: mark[0]),
    }
    marks = [
        {"kind": kind, "step": step, "time": time}
        for kind, found in kinds.items()
        for step, time in _spread(found)
    ]
    return sorted(marks, key=lambda mark: int(mark["step"]))


def _first_step(folder: RunFolder) -> int:
    """Returns the step that the run begins after: that of its checkpoint, if it is a fork."""
    try:
        forked = folder.read_forked_from()
    except (CorruptData, OSError):
        return 0  # a wrong file costs a mark that is none, not the chart
    return 0 if forked is None else forked.step


def _spread(marks: Sequence[tuple[int, float | None]]) -> list[tuple[int, float | None]]:
    """Returns at most MAX_MARKS of them, evenly spread, with the first and the last."""
    if len(marks) <= MAX_MARKS:
        return list(marks)
    last = len(marks) - 1
    return [marks[number * last // (MAX_MARKS - 1)] for number in range(MAX_MARKS)]
