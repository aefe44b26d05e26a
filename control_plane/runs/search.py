"""Finds runs: by a part of their name, state, group or tags, in any order, a page at a time."""

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from control_plane.runs.record import ACTIVE, Run, newest_revision, select_runs
from control_plane.runs.store import Store, runs, sound_json
from lectern_common.errors import InvalidRequest
from lectern_common.run.status import RunState

_SPEC, _STATUS = sound_json(runs.c.spec), sound_json(runs.c.status)
# One moment for all statements of a request: by a later one, runs would change their places.
_NOW = sa.bindparam("now", type_=sa.Float)
_FIELDS: dict[str, sa.ColumnElement[Any]] = {
    "created_at": runs.c.created_at,
    "name": runs.c.name,
    "state": runs.c.state,
    "attempt": runs.c.attempt,
    "student": sa.func.coalesce(
        _SPEC[("student", "init")].as_string(), _SPEC[("student", "config")].as_string()
    ),
    "elapsed": runs.c.active_seconds + sa.func.coalesce(_NOW - runs.c.active_since, 0.0),
    "progress": _STATUS["step"].as_float() / _SPEC[("schedule", "steps")].as_float(),
    "device": _STATUS["device"].as_string(),
    "tokens_per_second": sa.case(
        (runs.c.state.in_(ACTIVE), _STATUS["tokens_per_second"].as_float())
    ),
    "teacher_wait_share": _STATUS["teacher_wait_share"].as_float(),
    "checkpoint_at": _STATUS["checkpoint_at"].as_float(),
}
_METRIC = re.compile(r"^latest\.([\w./@-]{1,100})$")
_SETTING = re.compile(r"^spec\.(\w{1,40}(?:\.\w{1,40}){0,4})$")


@dataclass(frozen=True)
class Search:
    """Which runs, and in which order.

    Attributes:
        text: a part of the name or id, in any case.
        states: none means all.
        group: None means any, or none.
        tags: the run has all of them.
        sort: a name of _FIELDS, `latest.METRIC` or `spec.SETTING`; after "-", descending. None
            means newest first. Runs without a value come last, and equal ones newest first.
    """

    text: str | None = None
    states: Collection[RunState] = ()
    group: str | None = None
    tags: Collection[str] = ()
    sort: str | None = None

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        found: list[sa.ColumnElement[bool]] = []
        if self.text:
            found.append(runs.c.id.icontains(self.text, autoescape=True))
        if self.states:
            found.append(runs.c.state.in_(self.states))
        if self.group is not None:
            found.append(_SPEC["group"].as_string() == self.group)
        found += [_has_tag(tag) for tag in self.tags]
        return found


@dataclass(frozen=True)
class FoundRuns:
    """A page of runs. `total` counts all that match; `revision` is the newest of any run."""

    runs: list[Run]
    total: int
    revision: int


def find_runs(store: Store, search: Search, after_seq: int | None, limit: int) -> FoundRuns:
    """Returns up to `limit` runs that come after the run with `after_seq`.

    Raises:
        InvalidRequest: the order is unknown, or that run is gone, so that its place is not known.
    """
    conditions = search.conditions()
    order = runs.c.seq.desc()
    with store.reading() as connection:
        total = connection.execute(sa.select(sa.func.count()).where(*conditions).select_from(runs))
        if search.sort is None:
            if after_seq is not None:
                conditions = [*conditions, runs.c.seq < after_seq]
            found = select_runs(connection, *conditions, order=(order,), limit=limit)
        else:
            value, is_descending = _value(search.sort)
            now = time.time()
            if after_seq is not None:
                after = _after(connection, value, is_descending, after_seq, now)
                conditions = [*conditions, after]
            query = sa.select(runs.c.seq).where(*conditions).params(now=now)
            by = value.desc() if is_descending else value.asc()
            seqs = list(connection.execute(query.order_by(by.nulls_last(), order).limit(limit)))
            place = {row.seq: number for number, row in enumerate(seqs)}
            found = select_runs(connection, runs.c.seq.in_(place))
            found.sort(key=lambda run: place[run.seq])
        return FoundRuns(found, total.scalar_one(), newest_revision(connection))


def _has_tag(tag: str) -> sa.ColumnElement[bool]:
    entry = sa.func.json_each(_SPEC, "$.tags").table_valued("value")
    return sa.exists().where(entry.c.value == tag)


def _value(sort: str) -> tuple[sa.ColumnElement[Any], bool]:
    """Returns what a run is sorted by, and whether the largest comes first."""
    name = sort.removeprefix("-")
    is_descending = sort.startswith("-")
    if name in _FIELDS:
        return _FIELDS[name], is_descending
    if metric := _METRIC.match(name):
        return _STATUS[("latest", metric[1])].as_float(), is_descending
    if setting := _SETTING.match(name):
        path = tuple(setting[1].split("."))
        # As SQLite has it: numbers before texts, each in its own order.
        where = "".join(f'."{part}"' for part in path)
        return sa.func.json_extract(_SPEC, f"${where}"), is_descending
    known = ", ".join(_FIELDS)
    why = f"{sort!a} is not an order; known: {known}, latest.METRIC, spec.SETTING; - before it"
    raise InvalidRequest(f"{why} for descending", field="sort")


def _after(
    connection: sa.Connection,
    value: sa.ColumnElement[Any],
    is_descending: bool,
    after_seq: int,
    now: float,
) -> sa.ColumnElement[bool]:
    """Returns the condition that a run comes after the one with `after_seq`."""
    query = sa.select(value).where(runs.c.seq == after_seq).params(now=now)
    row = connection.execute(query).first()
    if row is None:
        why = "the run at the cursor was deleted; list the runs from the start"
        raise InvalidRequest(why, field="cursor")
    is_older = runs.c.seq < after_seq
    if row[0] is None:
        return sa.and_(value.is_(None), is_older)
    further = value < row[0] if is_descending else value > row[0]
    return sa.or_(value.is_(None), further, sa.and_(value == row[0], is_older))
