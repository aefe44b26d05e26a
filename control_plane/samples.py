"""samples.jsonl: what a run's student and teacher wrote on, the newest of it."""

import json
from pathlib import Path

from control_plane.trainer_text import end_of, valid_unicode
from control_plane.views import SampleView

MAX_READ_BYTES = 1 << 20


def newest_samples(path: Path, limit: int) -> list[SampleView]:
    """Returns the last `limit` samples, oldest first; lines that are none are left out.

    Args:
        path: of the file; none there has no samples.
        limit: at most so many, from the last MAX_READ_BYTES.
    """
    data, is_cut = end_of(path, MAX_READ_BYTES)
    # A line being written has no end yet; the first of a cut file has no beginning.
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    found = []
    for line in lines[1:] if is_cut else lines:
        try:
            sample = valid_unicode(json.loads(line))
            found.append(SampleView.model_validate(sample))
        except (ValueError, RecursionError):
            continue
    return found[-limit:]
