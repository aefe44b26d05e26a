"""Reads runs: one, by state, a page of them, what has changed, the history of one."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, Protocol

import sqlalchemy as sa

from control_plane.runs.alerts import alerts_since
from control_plane.runs.record import (
    ACTIVE,
    IN_LINE,
    MOVING,
    DeletedRun,
    InLine,
    Run,
    Wanted,
    get_run,
    newest_revision,
    readable_change,
    select_line,
    select_runs,
)
from control_plane.runs.search import FoundRuns, Search, find_runs
from control_plane.runs.store import (
    Store,
    deleted_runs,
    history,
    idempotency_keys,
    runs,
    sound_json,
    tasks,
)
from lectern_common.errors import InvalidRequest
from lectern_common.run.status import RunState


class Changed(Protocol):
    """A run, task or alert that changed, or one that was deleted."""

    @property
    def revision(self) -> int: ...


Others = Callable[[sa.Connection, int, int], Sequence[Changed]]


def _is_looked_after(table: sa.Table) -> sa.Exists:
    goes_on = sa.or_(table.c.resume_at.is_not(None), table.c.waits_for.is_not(None))
    return sa.exists().where(
        sa.or_(
            table.c.state.in_([*ACTIVE, RunState.QUEUED]),
            sa.and_(table.c.state == RunState.INTERRUPTED, goes_on),
        )
    )


_ANY_LOOKED_AFTER = sa.select(sa.or_(_is_looked_after(runs), _is_looked_after(tasks)))


class Lasting(NamedTuple):
    """A run that waits, or is silent, since `since` (Unix seconds), and not yet called overdue."""

    run_id: str
    state: RunState
    since: float


class StateCount(NamedTuple):
    """Runs in one state: how many, how many of them are stalled, and since when the first is."""

    runs: int
    stalled: int
    since: float


class Runs:
    """Reads the runs in the store; `RunCommands` changes them.

    Args:
        store: where they are kept.
        others: reads what else `changed_since` returns, within its transaction: of the given
            connection, changes after a revision, at most so many, in order.
    """

    def __init__(self, store: Store, others: Others | None = None) -> None:
        self._store = store
        self._others = others or (lambda connection, revision, limit: [])

    def get(self, run_id: str) -> Run:
        """Returns one run. Raises NotFound."""
        with self._store.reading() as connection:
            return get_run(connection, run_id)

    def at_rest(self) -> bool:
        """Returns whether no run and no task is active, queued, or goes on by itself."""
        with self._store.reading() as connection:
            return not connection.execute(_ANY_LOOKED_AFTER).scalar_one()

    def in_states(self, states: Collection[RunState]) -> list[Run]:
        """Returns all runs in one of the states, oldest first."""
        with self._store.reading() as connection:
            return select_runs(connection, runs.c.state.in_(states))

    def queued(self) -> tuple[tuple[str, float], ...]:
        """Returns the id of each queued run and when it was queued, the next to start first."""
        query = sa.select(runs.c.id, runs.c.since).where(runs.c.state == RunState.QUEUED)
        with self._store.reading() as connection:
            return tuple(tuple(row) for row in connection.execute(query.order_by(*IN_LINE)))

    def in_line(self) -> list[InLine]:
        """Returns the queued runs, the next to start first: by priority, then by age."""
        with self._store.reading() as connection:
            return select_line(connection)

    def waiting_to_restart(self) -> list[Run]:
        """Returns the interrupted runs that are queued again after a delay, oldest first."""
        with self._store.reading() as connection:
            found = select_runs(
                connection, runs.c.state == RunState.INTERRUPTED, runs.c.resume_at.is_not(None)
            )
        return [run for run in found if run.resumes_itself]

    def teachers(self, states: Collection[RunState]) -> list[tuple[str, str]]:
        """Returns id and `teacher.address` of the runs in one of the states that ask a server."""
        address = sa.func.json_extract(sound_json(runs.c.spec), "$.teacher.address")
        query = sa.select(runs.c.id, address).where(runs.c.state.in_(states))
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(runs.c.seq)).all()
        return [(run_id, at) for run_id, at in rows if isinstance(at, str) and at]

    def sizes(self) -> list[tuple[str, str, float, int | None]]:
        """Returns id, state, since when, and bytes on disk of each run, oldest first."""
        query = sa.select(runs.c.id, runs.c.state, runs.c.since, runs.c.disk_bytes)
        with self._store.reading() as connection:
            return [tuple(row) for row in connection.execute(query.order_by(runs.c.seq))]

    def known_ids(self) -> set[str]:
        """Returns the ids of all runs, deleted ones included."""
        query = sa.union_all(sa.select(runs.c.id), sa.select(deleted_runs.c.run_id))
        with self._store.reading() as connection:
            return set(connection.execute(query).scalars())

    def waiting_to_heal(self) -> list[Run]:
        """Returns the interrupted runs that wait for something to come true, oldest first."""
        with self._store.reading() as connection:
            found = select_runs(
                connection, runs.c.state == RunState.INTERRUPTED, runs.c.waits_for.is_not(None)
            )
        return [run for run in found if run.resumes_itself]

    def lasting(self) -> list[Lasting]:
        """Returns what may become overdue: runs that wait, and trainers without a heartbeat."""
        waits = sa.or_(
            runs.c.state.in_([RunState.QUEUED, RunState.WAITING_FOR_TEACHER]),
            sa.and_(
                runs.c.state == RunState.INTERRUPTED,
                runs.c.wanted == Wanted.RUNNING,
                runs.c.waits_for.is_not(None),
            ),
        )
        is_silent = sa.and_(
            runs.c.state.in_(MOVING),
            runs.c.stale_since.is_not(None),
            runs.c.stalled_since.is_(None),  # somebody has heard of it
        )
        since = sa.case((is_silent, runs.c.stale_since), else_=runs.c.since)
        query = sa.select(runs.c.id, runs.c.state, since)
        query = query.where(runs.c.overdue_since.is_(None), sa.or_(waits, is_silent))
        with self._store.reading() as connection:
            rows = connection.execute(query).all()
        return [
            Lasting(run_id, RunState(state), at)
            for run_id, state, at in rows
            if isinstance(at, int | float)  # a damaged row must not stop the others
        ]

    def heard_again(self) -> list[tuple[str, RunState]]:
        """Returns the active runs that were silent for too long, and no longer are."""
        query = sa.select(runs.c.id, runs.c.state).where(
            runs.c.state.in_(MOVING),
            runs.c.overdue_since.is_not(None),
            runs.c.stale_since.is_(None),
        )
        with self._store.reading() as connection:
            return [(run_id, RunState(state)) for run_id, state in connection.execute(query)]

    def by_state(self) -> dict[str, StateCount]:
        """Returns how many runs are in each state that any is in, with one query."""
        count, oldest = sa.func.count(), sa.func.min(runs.c.since)
        query = sa.select(runs.c.state, count, sa.func.count(runs.c.stalled_since), oldest)
        with self._store.reading() as connection:
            rows = connection.execute(query.group_by(runs.c.state)).all()
        return {state: StateCount(*counts) for state, *counts in rows}

    def search(self, search: Search, after_seq: int | None, limit: int) -> FoundRuns:
        """Returns up to `limit` runs after the one with `after_seq`; see `find_runs`."""
        return find_runs(self._store, search, after_seq, limit)

    def names(self, run_ids: Collection[str]) -> dict[str, str]:
        """Returns the names of those of the runs that exist, by id."""
        query = sa.select(runs.c.id, runs.c.name).where(runs.c.id.in_(run_ids))
        with self._store.reading() as connection:
            return {row.id: row.name for row in connection.execute(query)}

    def changed_since(self, revision: int, limit: int = 200) -> list[Changed]:
        """Returns what changed last after `revision`, in that order: runs, alerts, and others."""
        gone = sa.select(deleted_runs.c.run_id, deleted_runs.c.revision)
        gone = gone.where(deleted_runs.c.revision > revision).order_by("revision").limit(limit)
        with self._store.reading() as connection:
            changed: list[Changed] = [
                *select_runs(
                    connection, runs.c.revision > revision, order=(runs.c.revision,), limit=limit
                ),
                *(DeletedRun(*row) for row in connection.execute(gone)),
                *alerts_since(connection, revision, limit),
                *self._others(connection, revision, limit),
            ]
        return sorted(changed, key=lambda change: change.revision)[:limit]

    def newest_revision(self) -> int:
        with self._store.reading() as connection:
            return newest_revision(connection)

    def history(self, run_id: str, after_seq: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Returns the changes of state of a run, in order: seq, at, attempt, wanted, state, ..."""
        query = sa.select(history).where(history.c.run_id == run_id, history.c.seq > after_seq)
        with self._store.reading() as connection:
            return _history(connection, query.order_by(history.c.seq).limit(limit))

    def newest_history(
        self, run_id: str, limit: int, before_seq: int | None = None
    ) -> list[dict[str, Any]]:
        """Returns the last changes of state of a run before a `seq`, newest first."""
        query = sa.select(history).where(history.c.run_id == run_id)
        if before_seq is not None:
            query = query.where(history.c.seq < before_seq)
        with self._store.reading() as connection:
            return _history(connection, query.order_by(history.c.seq.desc()).limit(limit))

    def entered(self, run_id: str, state: RunState, earliest: float, latest: float) -> bool:
        """Returns whether a run changed to a state between two moments."""
        query = sa.select(history.c.seq).where(
            history.c.run_id == run_id,
            history.c.state == state,
            history.c.at.between(earliest, latest),
        )
        with self._store.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def newest_history_seq(self) -> int:
        """Returns the `seq` of the last change of state of any run; 0 before any."""
        with self._store.reading() as connection:
            return connection.execute(sa.select(sa.func.max(history.c.seq))).scalar() or 0

    def history_of_all(self, after_seq: int) -> list[dict[str, Any]]:
        """Returns the changes of state of all runs after a `seq`, in order."""
        query = sa.select(history).where(history.c.seq > after_seq)
        with self._store.reading() as connection:
            return _history(connection, query.order_by(history.c.seq))

    def made_by_key(self, key: str | None, request_sha256: str) -> Run | None:
        """Returns the run that an earlier request with this key made, or None.

        Raises:
            InvalidRequest: the key was used with another body.
        """
        with self._store.reading() as connection:
            return run_made_by_key(connection, key, request_sha256)


def _history(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [readable_change(row) for row in connection.execute(query).mappings()]


def run_made_by_key(connection: sa.Connection, key: str | None, request_sha256: str) -> Run | None:
    """Does what `Runs.made_by_key` does, within a transaction."""
    made = id_made_by_key(connection, key, request_sha256)
    return None if made is None else get_run(connection, made)


def id_made_by_key(connection: sa.Connection, key: str | None, request_sha256: str) -> str | None:
    """Returns the id of the run or task that a request with this key made; None if none did.

    Raises:
        InvalidRequest: the key was used with another request.
    """
    query = sa.select(idempotency_keys).where(idempotency_keys.c.key == key)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    made = str(row["run_id"])
    if row["request_sha256"] != request_sha256:
        is_task = connection.execute(sa.select(tasks.c.id).where(tasks.c.id == made)).first()
        raise InvalidRequest(
            f"this Idempotency-Key made {'task' if is_task else 'run'} {made} from another body; "
            "use a new key",
            field="Idempotency-Key",
        )
    return made
