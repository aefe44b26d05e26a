"""Sweeps as database rows: made with all of their runs in one transaction, read, deleted.

The runs are ordinary rows. Which sweep made them is written beside them, so it stays true when the
label `group` of a run changes, and when a fork takes that label with it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from control_plane.runs.commands import RunCommands
from control_plane.runs.creation import insert_runs, new_id
from control_plane.runs.record import ACTIVE, Run, select_runs
from control_plane.runs.store import Store, runs, sweep_runs, sweeps
from lectern_common.errors import Conflict, InvalidRequest, NotFound
from lectern_common.logs import get_logger
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sweep import Goal, Sweep
from lectern_common.teacher.identity import TeacherIdentity

_log = get_logger()


@dataclass(frozen=True)
class SweepRecord:
    """One row. `created_at` is in Unix seconds."""

    seq: int  # order of creation
    id: str
    name: str
    created_at: float
    metric: str
    goal: Goal
    settings: list[str]  # dotted paths in which its runs differ
    num_runs: int  # at first


class Sweeps:
    """The sweeps in the store.

    Args:
        store: where they are kept.
        commands: makes and stops their runs.
        clock: Unix seconds.
    """

    def __init__(
        self, store: Store, commands: RunCommands, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._commands = commands
        self._clock = clock

    def create(
        self,
        sweep: Sweep,
        ready: Sequence[tuple[RunSpec, TeacherIdentity | None]],
        key: str | None = None,
        id_taken: Callable[[str], bool] = lambda run_id: False,
    ) -> SweepRecord:
        """Returns a new sweep with all of its runs queued, or the one that the key made before.

        Args:
            sweep: as it was asked for.
            ready: the spec of each run with what its data decides filled in, and its teacher.
            key: the client's Idempotency-Key.
            id_taken: returns True for ids in use outside the store, such as by a folder.

        Raises:
            InvalidRequest: the key was used with another body, or there are more runs than the
                queue ever holds.
            Overloaded: the queue has no room for all of them.
        """
        now = self._clock()
        with self._store.writing() as connection:
            made = _made_by_key(connection, key, sweep)
            if made is not None:
                return made
            self._commands.require_room_in(connection, len(ready))
            sweep_id = new_id(sweep.name, lambda one: _find(connection, one) is not None)
            connection.execute(
                sa.insert(sweeps).values(
                    id=sweep_id,
                    name=sweep.name,
                    created_at=now,
                    metric=sweep.metric,
                    goal=sweep.goal,
                    settings=list(sweep.settings),
                    num_runs=len(ready),
                    key=key,
                    request_sha256=sweep.sha256(),
                )
            )
            grouped = [
                (spec.model_copy(update={"group": sweep_id}), teacher) for spec, teacher in ready
            ]
            its_runs = insert_runs(connection, grouped, id_taken, now)
            links = [{"run_id": run.id, "sweep_id": sweep_id} for run in its_runs]
            connection.execute(sa.insert(sweep_runs), links)
            record = _get(connection, sweep_id)
        _log.info("sweep created", sweep=sweep_id, runs=len(its_runs))
        self._commands.inserted(its_runs)
        return record

    def made_by_key(self, key: str | None, sweep: Sweep) -> SweepRecord | None:
        """Returns the sweep that an earlier request with this key made, or None.

        Raises:
            InvalidRequest: the key was used with another body.
        """
        with self._store.reading() as connection:
            return _made_by_key(connection, key, sweep)

    def get(self, sweep_id: str) -> tuple[SweepRecord, list[Run]]:
        """Returns a sweep and those of its runs that still exist, in order. Raises NotFound."""
        with self._store.reading() as connection:
            return _get(connection, sweep_id), _runs_of(connection, sweep_id)

    def page(
        self, before_seq: int | None, limit: int
    ) -> tuple[list[SweepRecord], dict[str, dict[str, int]], int]:
        """Returns sweeps newest first, how many runs of each are in which state, and the total."""
        query = sa.select(sweeps).order_by(sweeps.c.seq.desc()).limit(limit)
        if before_seq is not None:
            query = query.where(sweeps.c.seq < before_seq)
        with self._store.reading() as connection:
            found = [_record(row) for row in connection.execute(query).mappings()]
            total = connection.execute(sa.select(sa.func.count()).select_from(sweeps)).scalar_one()
            counts = (
                sa.select(sweep_runs.c.sweep_id, runs.c.state, sa.func.count())
                .join(runs, runs.c.id == sweep_runs.c.run_id)
                .where(sweep_runs.c.sweep_id.in_([one.id for one in found]))
                .group_by(sweep_runs.c.sweep_id, runs.c.state)
            )
            states: dict[str, dict[str, int]] = {one.id: {} for one in found}
            for sweep_id, state, count in connection.execute(counts):
                states[sweep_id][state] = count
        return found, states, total

    def stop(self, sweep_id: str) -> None:
        """Asks all runs of a sweep to stop that are active, queued or would resume by themselves.

        Those that wait are stopped first, so that none starts in the place of another. Raises
        NotFound.
        """
        _, found = self.get(sweep_id)
        for run in sorted(found, key=lambda run: run.state in ACTIVE):
            if _is_busy(run):
                try:
                    self._commands.request_stop(run.id)
                except (Conflict, NotFound):
                    _log.info("run ended before it was stopped", run=run.id)

    def delete(self, sweep_id: str) -> None:
        """Deletes the record of a sweep; its runs stay, with their `group`.

        Raises:
            NotFound: no such sweep.
            Conflict: one of its runs is active, queued, or would resume by itself.
        """
        with self._store.writing() as connection:
            _get(connection, sweep_id)
            busy = [run for run in _runs_of(connection, sweep_id) if _is_busy(run)]
            if busy:
                what = "resumes by itself" if busy[0].resumes_itself else f"is {busy[0].state}"
                others = f", and {len(busy) - 1} more are busy" if len(busy) > 1 else ""
                raise Conflict(
                    f"run {busy[0].id} of the sweep {what}{others}; stop the sweep first "
                    f"(`lectern sweeps stop {sweep_id}`), and wait until its runs have stopped"
                )
            connection.execute(sa.delete(sweep_runs).where(sweep_runs.c.sweep_id == sweep_id))
            connection.execute(sa.delete(sweeps).where(sweeps.c.id == sweep_id))
        _log.info("sweep deleted", sweep=sweep_id)


def _is_busy(run: Run) -> bool:
    return run.state in ACTIVE or run.state is RunState.QUEUED or run.resumes_itself


def _runs_of(connection: sa.Connection, sweep_id: str) -> list[Run]:
    its = sa.select(sweep_runs.c.run_id).where(sweep_runs.c.sweep_id == sweep_id)
    return select_runs(connection, runs.c.id.in_(its))


def _find(connection: sa.Connection, sweep_id: str) -> SweepRecord | None:
    query = sa.select(sweeps).where(sweeps.c.id == sweep_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else _record(row)


def _get(connection: sa.Connection, sweep_id: str) -> SweepRecord:
    found = _find(connection, sweep_id)
    if found is None:
        raise NotFound(f"no sweep {sweep_id}")
    return found


def _made_by_key(connection: sa.Connection, key: str | None, sweep: Sweep) -> SweepRecord | None:
    if key is None:
        return None
    query = sa.select(sweeps).where(sweeps.c.key == key)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    if row["request_sha256"] != sweep.sha256():
        raise InvalidRequest(
            f"this Idempotency-Key made sweep {row['id']} from another body; use a new key",
            field="Idempotency-Key",
        )
    return _record(row)


def _record(row: sa.RowMapping) -> SweepRecord:
    """Returns the record of a row; a damaged list of settings is empty."""
    settings: Any = row["settings"]
    is_list = isinstance(settings, list) and all(isinstance(path, str) for path in settings)
    return SweepRecord(
        seq=row["seq"],
        id=row["id"],
        name=row["name"],
        created_at=row["created_at"],
        metric=row["metric"],
        goal="max" if row["goal"] == "max" else "min",
        settings=settings if is_list else [],
        num_runs=row["num_runs"],
    )
