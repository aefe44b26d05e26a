"""Reads runs: one, by state, a page of them, what has changed, the history of one."""

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from control_plane.runs.record import (
    IN_LINE,
    DeletedRun,
    Run,
    get_run,
    newest_revision,
    select_runs,
)
from control_plane.runs.search import FoundRuns, Search, find_runs
from control_plane.runs.store import Store, deleted_runs, history, idempotency_keys, runs
from lectern_common.errors import InvalidRequest
from lectern_common.run.status import RunState


class Runs:
    """Reads the runs in the store; `RunCommands` changes them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, run_id: str) -> Run:
        """Returns one run. Raises NotFound."""
        with self._store.reading() as connection:
            return get_run(connection, run_id)

    def in_states(self, states: Collection[RunState]) -> list[Run]:
        """Returns all runs in one of the states, oldest first."""
        with self._store.reading() as connection:
            return select_runs(connection, runs.c.state.in_(states))

    def queued(self) -> tuple[tuple[str, float], ...]:
        """Returns the id of each queued run and when it was queued, the next to start first."""
        query = sa.select(runs.c.id, runs.c.since).where(runs.c.state == RunState.QUEUED)
        with self._store.reading() as connection:
            return tuple(tuple(row) for row in connection.execute(query.order_by(*IN_LINE)))

    def in_line(self) -> list[Run]:
        """Returns the queued runs, the next to start first: by priority, then by age."""
        with self._store.reading() as connection:
            return select_runs(connection, runs.c.state == RunState.QUEUED, order=IN_LINE)

    def waiting_to_heal(self) -> list[Run]:
        """Returns the interrupted runs that wait for something to come true, oldest first."""
        with self._store.reading() as connection:
            found = select_runs(
                connection, runs.c.state == RunState.INTERRUPTED, runs.c.waits_for.is_not(None)
            )
        return [run for run in found if run.resumes_itself]

    def search(self, search: Search, after_seq: int | None, limit: int) -> FoundRuns:
        """Returns up to `limit` runs after the one with `after_seq`; see `find_runs`."""
        return find_runs(self._store, search, after_seq, limit)

    def names(self, run_ids: Collection[str]) -> dict[str, str]:
        """Returns the names of those of the runs that exist, by id."""
        query = sa.select(runs.c.id, runs.c.name).where(runs.c.id.in_(run_ids))
        with self._store.reading() as connection:
            return {row.id: row.name for row in connection.execute(query)}

    def changed_since(self, revision: int, limit: int = 200) -> list[Run | DeletedRun]:
        """Returns runs whose last change came after `revision`, in the order of those changes."""
        gone = sa.select(deleted_runs.c.run_id, deleted_runs.c.revision)
        gone = gone.where(deleted_runs.c.revision > revision).order_by("revision").limit(limit)
        with self._store.reading() as connection:
            changed: list[Run | DeletedRun] = [
                *select_runs(
                    connection, runs.c.revision > revision, order=(runs.c.revision,), limit=limit
                ),
                *(DeletedRun(*row) for row in connection.execute(gone)),
            ]
        return sorted(changed, key=lambda run: run.revision)[:limit]

    def newest_revision(self) -> int:
        with self._store.reading() as connection:
            return newest_revision(connection)

    def history(self, run_id: str, after_seq: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Returns the changes of state of a run, in order: seq, at, attempt, wanted, state, ..."""
        query = sa.select(history).where(history.c.run_id == run_id, history.c.seq > after_seq)
        with self._store.reading() as connection:
            return _rows(connection, query.order_by(history.c.seq).limit(limit))

    def newest_history(
        self, run_id: str, limit: int, before_seq: int | None = None
    ) -> list[dict[str, Any]]:
        """Returns the last changes of state of a run before a `seq`, newest first."""
        query = sa.select(history).where(history.c.run_id == run_id)
        if before_seq is not None:
            query = query.where(history.c.seq < before_seq)
        with self._store.reading() as connection:
            return _rows(connection, query.order_by(history.c.seq.desc()).limit(limit))

    def newest_history_seq(self) -> int:
        """Returns the `seq` of the last change of state of any run; 0 before any."""
        with self._store.reading() as connection:
            return connection.execute(sa.select(sa.func.max(history.c.seq))).scalar() or 0

    def history_of_all(self, after_seq: int) -> list[dict[str, Any]]:
        """Returns the changes of state of all runs after a `seq`, in order."""
        query = sa.select(history).where(history.c.seq > after_seq)
        with self._store.reading() as connection:
            return _rows(connection, query.order_by(history.c.seq))

    def made_by_key(self, key: str | None, request_sha256: str) -> Run | None:
        """Returns the run that an earlier request with this key made, or None.

        Raises:
            InvalidRequest: the key was used with another body.
        """
        with self._store.reading() as connection:
            return run_made_by_key(connection, key, request_sha256)


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query).mappings()]


def run_made_by_key(connection: sa.Connection, key: str | None, request_sha256: str) -> Run | None:
    """Does what `Runs.made_by_key` does, within a transaction."""
    query = sa.select(idempotency_keys).where(idempotency_keys.c.key == key)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    if row["request_sha256"] != request_sha256:
        raise InvalidRequest(
            f"this Idempotency-Key made run {row['run_id']} from another body; use a new key",
            field="Idempotency-Key",
        )
    return get_run(connection, row["run_id"])
