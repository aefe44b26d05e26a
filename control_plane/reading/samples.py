"""Reads the newest samples of a run's student and teacher from samples.jsonl."""

from pathlib import Path

from control_plane.reading.logs.tail import valid_unicode
from control_plane.views.readings import SampleView
from lectern_common.json_lines import MAX_READ_BYTES, last_json_lines


def newest_samples(path: Path, limit: int) -> list[SampleView]:
    """Returns the last `limit` samples, oldest first; invalid lines are left out.

    A teacher does not change, so its text for a prompt is also added to samples written before it
    had answered.

    Args:
        path: samples.jsonl; a missing file has no samples.
        limit: at most this many, from the last MAX_READ_BYTES.
    """
    found: list[SampleView] = []
    theirs: dict[str, str] = {}
    for line in last_json_lines(path, MAX_READ_BYTES):
        try:
            sample = SampleView.model_validate(valid_unicode(line))
        except (ValueError, RecursionError):
            continue
        found.append(sample)
        if sample.teacher is not None:
            theirs[sample.prompt] = sample.teacher
    return [
        sample.model_copy(update={"teacher": theirs.get(sample.prompt)})
        for sample in found[-limit:]
    ]
