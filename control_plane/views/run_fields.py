"""How a run becomes its view."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from control_plane.runs.record import Run
from control_plane.views.runs import HistoryView, RunDetail, RunView
from lectern_common.errors import InvalidSpec
from lectern_common.run.status import RunState
from lectern_common.spec.changed import changed_settings
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import LABELS


def run_view(run: Run, now: float) -> RunView:
    """Returns the view of a run."""
    return RunView(**_run_fields(run, now))


def run_detail(run: Run, now: float, history: list[HistoryView], folder: str) -> RunDetail:
    """Returns the view of a run with its spec and history."""
    try:
        spec = run.run_spec
    except InvalidSpec:
        spec = None
    return RunDetail(**_run_fields(run, now), spec=spec, history=history, folder=folder)


def _run_fields(run: Run, now: float) -> dict[str, Any]:
    status = run.last_status
    of_spec = _spec_fields(run)
    return {
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "wanted": run.wanted,
        "stop_at": None if run.stop_at is None else str(run.stop_at),
        "forked_from": None if run.forked_from is None else asdict(run.forked_from),
        "reason": run.reason,
        "message": (run.waits_for if run.state is RunState.QUEUED else None) or run.message,
        "since": run.since,
        "created_at": run.created_at,
        "seq": run.seq,
        "revision": run.revision,
        "attempt": run.attempt,
        "restarts": run.restarts,
        "resumable": run.resumable,
        "resumes_at": run.resume_at if run.resumes_itself else None,
        "resumes_when": run.resumes_when,
        "heals": run.heals,
        "disk_bytes": run.disk_bytes,
        "queue_position": run.queue_position,
        **of_spec,
        "step": status.step if status else run.checkpoint_step or 0,
        "steps": of_spec["steps"] or (status.steps if status else 0),
        "checkpoint_step": run.checkpoint_step,
        "checkpoint_at": status.checkpoint_at if status else None,
        "device": (status.device if status else None) or ", ".join(run.slots or ()) or None,
        "slots": run.slots or [],
        "threads": run.threads,
        "tokens_per_second": status.tokens_per_second if status and run.trains else None,
        "eta_seconds": _eta_seconds(run, of_spec["steps"]),
        "teacher_wait_share": status.teacher_wait_share if status else None,
        "latest": status.latest if status else {},
        "elapsed_seconds": run.elapsed_seconds(now),
        "heartbeat": status.heartbeat if status else None,
        "stale_since": run.stale_since,
        "stalled_since": run.stalled_since,
        "activity": status.activity if status and run.handle is not None else None,
    }


class _SpecFields(BaseModel):
    """What a list shows of a spec, and its types."""

    alpha: float | None = None
    temperature: float | None = None
    representation: str | None = None
    top_k: int | None = None
    num_draws: int | None = None
    teacher: str | None = None
    student: str | None = None
    keep_every_nth_layer: int | None = None
    lora_rank: int | None = None
    dataset: str | None = None
    steps: int | None = None
    settings: dict[str, Any] = {}
    priority: int = 0
    group: str | None = None
    tags: list[str] = []
    notes: str = ""


def _spec_fields(run: Run) -> dict[str, Any]:
    """Returns what a list shows of the stored spec; all None if it cannot be read.

    It is read as it stands, which is much faster than as a RunSpec, unless a section is missing: an
    older release's spec lacks those that were added since.
    """
    return _fields_of(json.dumps(run.spec))


@lru_cache(maxsize=512)  # most lists show runs that were shown before; about 5 KB each
def _fields_of(text: str) -> dict[str, Any]:
    spec = json.loads(text)
    try:
        try:
            found = _SpecFields.model_validate(_of_spec(spec))
        except (KeyError, TypeError, AttributeError):
            found = _SpecFields.model_validate(_of_spec(parse_spec(spec).model_dump(mode="json")))
    except (InvalidSpec, ValidationError):
        found = _SpecFields()
    return found.model_dump()


def _of_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    teacher, student = spec["teacher"] or {}, spec["student"]
    return {
        "alpha": spec["objective"]["alpha"],
        "temperature": spec["objective"]["temperature"] if teacher else None,
        "representation": teacher.get("representation"),
        "top_k": teacher.get("top_k"),
        "num_draws": teacher.get("num_draws"),
        "teacher": teacher.get("address") or teacher.get("record"),
        "student": student["init"] or student["config"],
        "keep_every_nth_layer": student.get("keep_every_nth_layer"),
        "lora_rank": (student.get("lora") or {}).get("rank"),
        "dataset": spec["data"]["path"],
        "steps": spec["schedule"]["steps"],
        "settings": changed_settings(spec),
        **{name: spec[name] for name in LABELS if name in spec},
    }


def _eta_seconds(run: Run, steps: int | None) -> float | None:
    status = run.last_status
    if run.state is not RunState.RUNNING or status is None or status.seconds_per_step is None:
        return None
    if steps is None:
        return None
    return max(0, steps - status.step) * status.seconds_per_step
