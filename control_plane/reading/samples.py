"""samples.jsonl: what a run's student and teacher wrote on, the newest of it."""

from pathlib import Path

from control_plane.reading.log import valid_unicode
from control_plane.views import SampleView
from lectern_common.json_lines import MAX_READ_BYTES, last_json_lines


def newest_samples(path: Path, limit: int) -> list[SampleView]:
    """Returns the last `limit` samples, oldest first; lines that are none are left out.

    A teacher does not change: what it wrote for a prompt stands beside the samples that were
    written before it had answered, too.

    Args:
        path: of the file; none there has no samples.
        limit: at most so many, from the last MAX_READ_BYTES.
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
