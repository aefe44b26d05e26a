"""Checks the runs of a sweep before any is made; what is equal for several is checked once."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

from control_plane.sweeps.views import CombinationView, SweepCheckView, SweepEstimateView
from control_plane.teachers.checks import StartChecks
from control_plane.teachers.dry_run import check_views
from control_plane.views.checks import CheckView
from lectern_common.checks.needs.estimate import estimate_run
from lectern_common.checks.preflight import UNREAD, Found
from lectern_common.errors import CorruptData, InvalidSpec, LecternError
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sweep import SEED, Sweep, placed, require_different
from lectern_common.teacher.identity import TeacherIdentity


async def resolved(sweep: Sweep, checks: StartChecks) -> list[RunSpec]:
    """Returns the spec of each run with what its data decides filled in.

    Raises:
        InvalidSpec: two of them are then the same.
    """
    data: dict[str, RunSpec] = {}
    specs = []
    for spec in sweep.specs:
        key = spec.data.model_dump_json()
        if key not in data:
            data[key] = await checks.resolved(spec)
        specs.append(spec.model_copy(update={"data": data[key].data}))
    await asyncio.to_thread(require_different, sweep, specs)
    return specs


async def require_startable(
    sweep: Sweep, checks: StartChecks
) -> list[tuple[RunSpec, TeacherIdentity | None]]:
    """Returns the spec of each run, and the teacher that it is accepted with.

    Raises:
        LecternError: the first check that fails, with its field in the sweep, and the run if the
            check is not equal for all.
    """
    specs = await resolved(sweep, checks)
    kinds = _kinds(specs)
    teachers: dict[int, TeacherIdentity | None] = {}
    for indices in kinds:
        try:
            teacher = await checks.require_startable(specs[indices[0]])
        except LecternError as error:
            raise _told(error, sweep, indices[0], several=len(kinds) > 1) from None
        teachers |= dict.fromkeys(indices, teacher)
    return [(spec, teachers[index]) for index, spec in enumerate(specs)]


async def checked(
    sweep: Sweep, checks: StartChecks, max_running: int, free_disk_bytes: int | None
) -> SweepCheckView:
    """Returns what `require_startable` would find, an estimate, and advice; creates nothing.

    Args:
        sweep: to be checked.
        checks: of this control plane.
        max_running: how many runs train at the same time.
        free_disk_bytes: where the run folders are; None if unknown.

    Raises:
        LecternError: there is no such device, or the teacher's secrets may not be sent to it.
    """
    specs = await resolved(sweep, checks)
    kinds, views = _kinds(specs), list[CheckView]()
    of_run: dict[int, Found] = {}
    for indices in kinds:
        first = indices[0]
        try:
            made, found = await checks.examined(specs[first])
        except LecternError as error:
            raise _told(error, sweep, first, several=len(kinds) > 1) from None
        of_run |= dict.fromkeys(indices, found)
        about = f" ({sweep.named(first)})" if len(kinds) > 1 else ""
        for view in check_views(made):
            field = None if view.field is None else placed(sweep, first, view.field)
            views.append(
                view.model_copy(update={"field": field, "message": f"{view.message}{about}"})
            )
    estimate = _estimate(specs, of_run, free_disk_bytes)
    return SweepCheckView(
        ok=all(view.outcome != "fail" for view in views),
        runs=[
            CombinationView(name=spec.name, settings=one.settings)
            for spec, one in zip(specs, sweep.combinations, strict=True)
        ],
        settings=list(sweep.settings),
        checks=views,
        estimate=estimate,
        advice=list(_advice(sweep, specs, max_running)),
    )


def _kinds(specs: Sequence[RunSpec]) -> list[list[int]]:
    """Returns the indices of the specs, those for which every check is equal together."""
    kinds: dict[str, list[int]] = {}
    for index, spec in enumerate(specs):
        kinds.setdefault(spec.model_dump_json(exclude=UNREAD), []).append(index)
    return list(kinds.values())


def _told(error: LecternError, sweep: Sweep, index: int, *, several: bool) -> LecternError:
    """Returns the error about the spec of one run as one about the sweep."""
    about = f" ({sweep.named(index)})" if several else ""
    if isinstance(error, InvalidSpec):
        return InvalidSpec(
            [(placed(sweep, index, field), f"{why}{about}") for field, why in error.problems]
        )
    if isinstance(error, CorruptData) and error.field is not None:
        error.field = placed(sweep, index, error.field)
    error.args = (f"{error}{about}", *error.args[1:])
    return error


def _rows_of(spec: RunSpec) -> str:
    """Returns what decides which rows a run asks its teacher about, and in which order."""
    return json.dumps([_source(spec), spec.seed, spec.data.model_dump(mode="json")])


def _source(spec: RunSpec) -> dict[str, str]:
    """Returns where the run's teacher is, by the setting that says so; {} without a teacher."""
    if spec.teacher is None:
        return {}
    if spec.teacher.record is not None:
        return {"teacher.record": spec.teacher.record}
    return {"teacher.address": spec.teacher.address}


def _estimate(
    specs: Sequence[RunSpec], found: dict[int, Found], free_disk_bytes: int | None
) -> SweepEstimateView:
    tokens = asked = 0
    shared: dict[tuple[str, int | None], tuple[int, float | None]] = {}
    for index, spec in enumerate(specs):
        of = found[index]
        one = estimate_run(
            spec, of.rows, of.teacher, None, of.student.vocab_size, prompts=of.prompts
        )
        tokens, asked = tokens + one.tokens, asked + one.teacher_tokens
        if spec.asks_server:
            # Runs over the same rows in the same order: the longest asks for all that others do.
            # Rows with ids that the student lacks are left out.
            # What a student writes, no other run asks for.
            rows = _rows_of(spec) if spec.rollout is None else str(index)
            key = rows, of.student.vocab_size
            before = shared.get(key, (0, None))
            shared[key] = max((one.teacher_tokens, one.teacher_hours), before, key=lambda of: of[0])
    hours = [of[1] for of in shared.values()]
    known = [of for of in hours if of is not None]
    return SweepEstimateView(
        tokens=tokens,
        teacher_tokens=asked,
        teacher_tokens_shared=sum(of[0] for of in shared.values()),
        teacher_hours=sum(known) if known and len(known) == len(hours) else None,
        free_disk_bytes=free_disk_bytes,
    )


def _advice(sweep: Sweep, specs: Sequence[RunSpec], max_running: int) -> Iterator[str]:
    """Yields what keeps the runs from sharing the teacher's work."""
    taught = [spec for spec in specs if spec.asks_server]  # a record is read by each for itself
    if len(taught) < 2:
        return
    passes = len({_rows_of(spec) for spec in taught})
    varied = _varied(taught)
    if SEED in varied:
        yield (
            "seed draws the order of the rows, and no other setting does: runs of different seeds "
            "ask the teacher for different rows at the same time, and share only what its cache "
            "still holds; count on one pass for each seed"
        )
    others = [name for name in varied if name != SEED]
    if others:
        yield (
            f"runs that differ in {', '.join(others)} ask the teacher for different rows, or "
            "different teachers, and share nothing"
        )
    if len(specs) > max_running and passes < len(taught):
        yield (
            f"at most {max_running} of the {len(specs)} runs train at the same time: those that "
            "start later share only what the teacher's cache still holds (`lectern teacher serve "
            "--cache-bytes`, or --cache-folder for more than memory holds)"
        )


def _varied(specs: Sequence[RunSpec]) -> list[str]:
    """Returns which of the settings that decide the rows differ."""
    values: dict[str, set[str]] = {}
    for spec in specs:
        data: dict[str, Any] = spec.data.model_dump(mode="json")
        one: dict[str, Any] = {SEED: spec.seed, **_source(spec)}
        one |= {f"data.{name}": value for name, value in data.items()}
        for name, value in one.items():
            values.setdefault(name, set()).add(json.dumps(value))
    return [name for name, seen in values.items() if len(seen) > 1]
