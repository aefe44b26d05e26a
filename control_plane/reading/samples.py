"""Reads what a run's student and teacher wrote: samples.jsonl and rollouts.jsonl."""

from pathlib import Path
from typing import Any

from control_plane.reading.logs.tail import valid_unicode
from control_plane.views.readings import RolloutView, SampleView
from lectern_common.json_lines import MAX_READ_BYTES, last_json_lines, lines_before, position_of


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


def newest_rollouts(
    path: Path, limit: int, before_step: int | None = None
) -> tuple[list[RolloutView], bool]:
    """Returns the last rollouts, oldest first, and whether there are earlier ones.

    Invalid lines are left out. All rollouts of a step come together, unless only a part of the last
    step's fits.

    Args:
        path: rollouts.jsonl; a missing file has no rollouts.
        limit: at most this many, from MAX_READ_BYTES.
        before_step: only those of earlier steps.
    """
    offset = None if before_step is None else position_of(path, before_step).offset
    lines, is_cut = lines_before(path, offset, MAX_READ_BYTES)
    found = [rollout for line in lines if (rollout := _rollout(line)) is not None]
    kept = found[-limit:]
    before = found[-limit - 1 : -limit]
    is_partial = before[0].step == kept[0].step if before else is_cut and bool(kept)
    if is_partial:
        kept = [rollout for rollout in kept if rollout.step != kept[0].step] or kept
    return kept, is_cut or len(kept) < len(found)


def _rollout(line: Any) -> RolloutView | None:
    if not isinstance(line, dict):
        return None
    known = {name: line.get(name) for name in RolloutView.model_fields}
    try:
        return RolloutView.model_validate(valid_unicode(known))
    except (ValueError, RecursionError):
        return None
