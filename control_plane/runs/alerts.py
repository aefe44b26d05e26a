"""Alerts: what somebody should hear of, made once for each time that it happens.

failed     a run or task failed, or was interrupted and does not go on by itself
diverged   a run failed because its loss or gradient was not finite (reason `diverged`); there is no
           `failed` as well
finished   a run succeeded
stalled    an active run makes no progress, or its trainer lives without a sign of life
waiting    a run has waited for too long: in the queue, for its teacher, or to go on by itself
disk       the disk of the run folders becomes too full

What follows from a change of a run is made in the transaction of that change, so that neither a
kill nor a race makes it twice or loses it. Each alert is also a row of an outbox: delivery.py of
`observing` sends those that have a `next_try_at`, and records here how that went.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from control_plane.runs.record import Job, Run, Wanted, newest_revision, stored_value
from control_plane.runs.store import Store, alerts, plane_conditions
from lectern_common.errors import Diverged
from lectern_common.run.status import VALIDATION_LOSS, RunState
from lectern_common.run.untrusted import cut
from lectern_common.words import duration

MAX_ALERTS = 1000


class AlertKind(StrEnum):
    FAILED = "failed"
    DIVERGED = "diverged"
    FINISHED = "finished"
    STALLED = "stalled"
    WAITING = "waiting"
    DISK = "disk"


@dataclass(frozen=True)
class Alert:
    """One row. Times are Unix seconds."""

    seq: int
    revision: int  # among those of runs: a list stream continues from it
    at: float
    kind: str
    run_id: str | None  # this and the next four: of the run, as it was then
    name: str | None
    state: str | None
    reason: str | None
    step: int | None
    message: str
    attempts: int = 0  # to deliver it
    next_try_at: float | None = None  # None: it needs no delivery, or no further one
    delivered_at: float | None = None
    last_error: str | None = None  # of the last attempt
    folded_into: int | None = None  # delivered together with, and as, the alert of this seq


class Alerts:
    """All alerts in the store, the newest MAX_ALERTS of them.

    Args:
        store: where they are kept.
        clock: Unix seconds.
        delivers: new ones are to be delivered.
        changed: called after an alert that does not come with a change of a run; from any thread.
        added: called after each new alert; from any thread.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.time,
        *,
        delivers: bool = False,
        changed: Callable[[], None] = lambda: None,
        added: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._delivers = delivers
        self._changed = changed
        self.added = added

    def add(
        self,
        connection: sa.Connection,
        kind: AlertKind,
        message: str,
        run: Run | None = None,
        task: Job | None = None,
    ) -> None:
        """Makes an alert about a run or task in the caller's transaction.

        Call `added` once that is committed.
        """
        now = self._clock()
        status = None if run is None else run.last_status
        values = {
            "revision": newest_revision(connection) + 1,
            "at": now,
            "kind": kind,
            "message": cut(message),
            "attempts": 0,
            "next_try_at": now if self._delivers else None,
        }
        if run is not None:
            values |= {
                "run_id": run.id,
                "name": run.name,
                "state": run.state,
                "reason": run.reason,
                "step": 0 if status is None else status.step,
            }
        if task is not None:
            values |= {"run_id": task.run_id, "name": task.id}
            values |= {"state": task.state, "reason": task.reason}
        connection.execute(sa.insert(alerts).values(values))
        newest = sa.select(sa.func.max(alerts.c.seq)).scalar_subquery()
        connection.execute(sa.delete(alerts).where(alerts.c.seq <= newest - MAX_ALERTS))

    def condition(self, kind: AlertKind, message: str | None) -> None:
        """Makes an alert if what it is about begins to hold for this control plane.

        Stored, so that neither a restart nor a further look makes a second one.

        Args:
            message: None means that it does not hold.
        """
        is_it = plane_conditions.c.name == kind
        with self._store.reading() as connection:
            held = connection.execute(sa.select(plane_conditions).where(is_it)).first() is not None
        if held == (message is not None):
            return
        with self._store.writing() as connection:
            # Whatever stood there: only housekeeping looks, one look at a time.
            connection.execute(sa.delete(plane_conditions).where(is_it))
            if message is not None:
                values = {"name": kind, "since": self._clock()}
                connection.execute(sa.insert(plane_conditions).values(values))
                self.add(connection, kind, message)
        if message is not None:
            self._changed()
            self.added()

    def newest(self, after_seq: int = 0, limit: int = MAX_ALERTS) -> list[Alert]:
        """Returns the last alerts after a `seq`, newest first."""
        query = sa.select(alerts).where(alerts.c.seq > after_seq)
        with self._store.reading() as connection:
            return _alerts(connection, query.order_by(alerts.c.seq.desc()).limit(limit))

    # ---- delivery ----------------------------------------------------------------------------

    def undelivered(self) -> int:
        """Returns how many alerts are yet to be delivered."""
        query = sa.select(sa.func.count()).where(alerts.c.next_try_at.is_not(None))
        with self._store.reading() as connection:
            return connection.execute(query).scalar_one()

    def pending(self) -> list[Alert]:
        """Returns those that are yet to be delivered, oldest first, without those folded away."""
        query = sa.select(alerts).where(
            alerts.c.next_try_at.is_not(None), alerts.c.folded_into.is_(None)
        )
        with self._store.reading() as connection:
            return _alerts(connection, query.order_by(alerts.c.seq))

    def folded(self, seq: int) -> list[Alert]:
        """Returns the alerts that are delivered as this one, itself included, oldest first."""
        query = sa.select(alerts).where(_delivered_as([seq]))
        with self._store.reading() as connection:
            return _alerts(connection, query.order_by(alerts.c.seq))

    def fold(self, seqs: Sequence[int]) -> None:
        """Has alerts, and what was folded into them, delivered as the newest of them from now on.

        Stored before the first attempt: a repeated one has the same `seq`.
        """
        into = max(seqs)
        others = [seq for seq in seqs if seq != into]
        with self._store.writing() as connection:
            rows = sa.update(alerts).where(_delivered_as(others))
            connection.execute(rows.values(folded_into=into))

    def delivered(self, seq: int, attempts: int) -> None:
        """Records that an alert, and what is folded into it, has arrived."""
        self._tried(seq, attempts, delivered_at=self._clock(), next_try_at=None, last_error=None)

    def not_delivered(self, seq: int, attempts: int, error: str, next_try_at: float | None) -> None:
        """Records a failed attempt; without `next_try_at` there is no further one."""
        self._tried(seq, attempts, next_try_at=next_try_at, last_error=cut(error, 500))

    def _tried(self, seq: int, attempts: int, **values: Any) -> None:
        with self._store.writing() as connection:
            rows = sa.update(alerts).where(_delivered_as([seq]))
            connection.execute(rows.values(attempts=attempts, **values))


def kind_of_change(before: Run, after: Run) -> AlertKind | None:
    """Returns which alert a change of a run's state makes; None for one that makes none."""
    if after.state is before.state:
        return None
    if after.state is RunState.SUCCEEDED:
        return AlertKind.FINISHED
    if after.state is RunState.FAILED:
        return AlertKind.DIVERGED if after.reason == Diverged.reason else AlertKind.FAILED
    if after.state is RunState.INTERRUPTED and after.wanted is Wanted.RUNNING:
        return None if after.resumes_itself else AlertKind.FAILED
    return None


def sentence(kind: AlertKind, run: Run, now: float) -> str:
    """Returns an alert's message about a run."""
    step = 0 if run.last_status is None else run.last_status.step
    why = ": ".join(filter(None, (run.reason, run.message)))
    if kind is AlertKind.FINISHED:
        loss = None if run.last_status is None else run.last_status.latest.get(VALIDATION_LOSS)
        measured = "" if loss is None else f", validation loss {loss:.4g}"
        return f"{run.id} finished after {step:,} steps{measured}"
    if kind is AlertKind.STALLED:
        if run.stalled_since is None:
            silent = _lasting(run.stale_since, now)
            return f"{run.id} lives, but its trainer has said nothing for {silent}; step {step:,}"
        silent = _lasting(run.stalled_since, now)
        doing = None if run.last_status is None else run.last_status.activity
        where = f"step {step:,}" if doing in (None, "step") else f"{doing}, step {step:,}"
        return f"{run.id} has made no progress for {silent} ({where})"
    if kind is AlertKind.WAITING:
        return f"{run.id} has waited for {_lasting(run.since, now)}: {_awaited(run)}"
    if kind is AlertKind.DIVERGED:
        return f"{run.id} diverged at step {step:,}: {run.message or 'loss or gradient not finite'}"
    if run.state is RunState.INTERRUPTED:
        return f"{run.id} was interrupted at step {step:,} and waits for you: {why}"
    return f"{run.id} failed at step {step:,}: {why}"


def _lasting(since: float | None, now: float) -> str:
    return duration(max(0.0, now - (since or now)) / 3600)


def _awaited(run: Run) -> str:
    if run.state is RunState.WAITING_FOR_TEACHER:
        return run.message or "its teacher does not answer"
    if run.state is RunState.QUEUED:
        return run.waits_for or "it is queued"
    return f"it goes on when {run.waits_for or 'its time has come'}"


def alerts_since(connection: sa.Connection, revision: int, limit: int) -> list[Alert]:
    """Returns the first alerts after a revision, in order."""
    query = sa.select(alerts).where(alerts.c.revision > revision)
    return _alerts(connection, query.order_by(alerts.c.revision).limit(limit))


def _delivered_as(seqs: Sequence[int]) -> sa.ColumnElement[bool]:
    return sa.or_(alerts.c.seq.in_(seqs), alerts.c.folded_into.in_(seqs))


def _alerts(connection: sa.Connection, query: sa.Select[Any]) -> list[Alert]:
    rows = connection.execute(query).mappings()
    return [
        Alert(**{column.name: stored_value(column, row[column.name]) for column in alerts.columns})
        for row in rows
    ]
