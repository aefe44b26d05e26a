"""Creates, changes and deletes runs, each in one transaction.

Every change goes through `RunCommands._change`: one function, one transaction. It reads the row,
decides the change, refuses a step that `NEXT` does not allow, and writes row and history together.
The decisions are functions in `decisions.py`; `creation.py` makes the rows.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from control_plane.runs import decisions
from control_plane.runs.alerts import AlertKind, Alerts, kind_of_change, sentence
from control_plane.runs.callers import caller
from control_plane.runs.creation import Fork, insert_runs, remember, set_place
from control_plane.runs.decisions import NO_PROCESS, RESUMES
from control_plane.runs.healing import after_end
from control_plane.runs.queries import run_made_by_key
from control_plane.runs.record import (
    ACTIVE,
    MOVING,
    Change,
    Run,
    StopAt,
    Wanted,
    get_run,
    newest_revision,
    select_runs,
)
from control_plane.runs.store import (
    Store,
    deleted_runs,
    history,
    idempotency_keys,
    runs,
    sweep_runs,
    tasks,
)
from lectern_common.errors import Conflict, InvalidRequest, NotFound, Overloaded
from lectern_common.logs import get_logger
from lectern_common.run.processes import Identity
from lectern_common.run.status import RESTING, RunState, Status
from lectern_common.spec.run_spec import LABELS, RunSpec
from lectern_common.teacher.identity import TeacherIdentity

MAX_QUEUED = 1000
QUEUE_RETRY_SECONDS = 60

_log = get_logger()


class RunCommands:
    """The only way to change runs; `Runs` reads them.

    Args:
        store: where they are kept.
        clock: Unix seconds.
        changed: called after each visible change; from any thread.
        max_queued: how many runs may wait; a request for one more is refused.
        alerts: gets those that changes make; None means one with the same store and clock.

    Attributes:
        restarts: how often this process has queued a run again by itself, by the reason of its end.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.time,
        changed: Callable[[], None] = lambda: None,
        max_queued: int = MAX_QUEUED,
        alerts: Alerts | None = None,
    ) -> None:
        self.restarts: Counter[str] = Counter()
        self._alerts = alerts or Alerts(store, clock)
        self._store = store
        self.room = store.room
        self._max_queued = max_queued
        self._clock = clock
        self._changed = changed

    def create(
        self,
        spec: RunSpec,
        key: str | None = None,
        request_sha256: str = "",
        id_taken: Callable[[str], bool] = lambda run_id: False,
        teacher: TeacherIdentity | None = None,
        fork: Fork | None = None,
    ) -> Run:
        """Returns a new queued run, or the run that an earlier request with this key made.

        Args:
            key: the client's Idempotency-Key.
            request_sha256: hash of the body that came with it.
            id_taken: returns True for ids in use outside the store, such as by a folder.
            teacher: the teacher that the run is accepted with, the only one it trains with.
            fork: what it begins with; None means with nothing.

        Raises:
            InvalidRequest: the key was used with another body.
            Overloaded: the queue is full.
        """
        now = self._clock()
        with self._store.writing() as connection:
            made = run_made_by_key(connection, key, request_sha256)
            if made is not None:
                return made
            self.require_room_in(connection)
            [run] = insert_runs(connection, [(spec, teacher)], id_taken, now, fork)
            set_place(connection, run.id)
            run = get_run(connection, run.id)
            if key is not None:
                connection.execute(
                    sa.insert(idempotency_keys).values(
                        key=key, request_sha256=request_sha256, run_id=run.id, created_at=now
                    )
                )
        self.inserted([run])
        return run

    def inserted(self, made: Iterable[Run]) -> None:
        """Logs runs that a transaction has made, and wakes those who wait for changes."""
        for run in made:
            _log.info("run created", run=run.id, by=caller())
        self._changed()

    def require_room(self, count: int = 1) -> None:
        """Raises Overloaded if the queue is full; asked before the checks of runs, which cost."""
        with self._store.reading() as connection:
            self.require_room_in(connection, count)

    def request_stop(self, run_id: str, at: StopAt = StopAt.NOW) -> Run:
        """Returns the run, now to be stopped. Repeating the request changes nothing.

        Args:
            at: CHECKPOINT lets an active run go on to its next checkpoint; without one before its
                last step, it succeeds. A run without a trainer stops at once.

        Raises:
            NotFound: no such run.
            Conflict: it has succeeded or failed, or its trainer cannot be told of a checkpoint.
        """
        return self._change(
            run_id, decisions.stopped if at is StopAt.NOW else decisions.stops_at_checkpoint
        )

    def request_resume(
        self, run_id: str, new_spec: Callable[[RunSpec], RunSpec] = lambda spec: spec
    ) -> Run:
        """Returns the run, queued to resume from its newest checkpoint.

        Args:
            new_spec: makes the spec to resume with from the present one.

        Raises:
            NotFound: no such run.
            Conflict: it is active, or has nothing more to do.
            InvalidSpec: the new spec changes what a resume may not change.
            Overloaded: the queue is full.
        """

        def decide(run: Run) -> Change:
            spec = new_spec(run.run_spec)
            decisions.require_goes_on(run, spec)
            return Change(
                RunState.QUEUED,
                Wanted.RUNNING,
                columns={
                    "spec": spec.model_dump(mode="json"),
                    "restarts": 0,
                    "heals": 0,
                    "resume_at": None,
                    "stop_at": None,
                },
            )

        return self._change(run_id, decide, self.require_room_in)

    def set_labels(self, run_id: str, new_spec: Callable[[RunSpec], RunSpec]) -> Run:
        """Returns the run with the labels of a new spec; in any state, and not in its history.

        A trainer that is at work keeps its copy of the spec; the row is what counts.

        Args:
            new_spec: makes it from the present one; only its LABELS are taken.

        Raises:
            NotFound: no such run.
            InvalidSpec: the present spec cannot be read, or the new one is not valid.
        """

        def decide(run: Run) -> Change | None:
            given = new_spec(run.run_spec).model_dump(mode="json", include=set(LABELS))
            spec = {**run.spec, **given}
            return None if spec == run.spec else Change.of_columns(run, spec=spec)

        return self._change(run_id, decide)

    def delete(
        self, run_id: str, set_aside: Callable[[], None], since: float | None = None
    ) -> None:
        """Deletes the rows of a run that is not active; `changed_since` then has a DeletedRun.

        Args:
            set_aside: called once the run is known to be deletable, before its rows go.
            since: deletes it only if it has been in its state since then; None means always.

        Raises:
            NotFound: no such run.
            Conflict: it is active, would resume by itself, or has changed its state.
        """
        with self._store.writing() as connection:
            run = get_run(connection, run_id)
            if run.state not in RESTING or run.resumes_itself:
                what = f"is {run.state}"
                if run.state in RESTING:
                    what = f"is {run.state}, but resumes by itself"
                raise Conflict(f"run {run_id} {what}; stop it first (`lectern runs stop {run_id}`)")
            if since is not None and run.since != since:
                raise Conflict(f"run {run_id} has been resumed meanwhile, and is {run.state} again")
            busy = sa.select(tasks.c.id, tasks.c.state).where(
                tasks.c.run_id == run_id, tasks.c.state.in_([*ACTIVE, RunState.QUEUED])
            )
            for task_id, state in connection.execute(busy):
                raise Conflict(
                    f"the task {task_id} of run {run_id} is {state}; stop it first (`lectern tasks "
                    f"stop {task_id}`)"
                )
            set_aside()
            revision = newest_revision(connection) + 1
            connection.execute(sa.insert(deleted_runs).values(run_id=run_id, revision=revision))
            for table in (history, idempotency_keys, sweep_runs, tasks):
                connection.execute(sa.delete(table).where(table.c.run_id == run_id))
            connection.execute(sa.delete(runs).where(runs.c.id == run_id))
        _log.info("run deleted", run=run_id, by=caller())
        self._changed()

    def adopt(self, row: Mapping[str, Any]) -> Run:
        """Returns a new run that its folder describes, even if it was deleted before.

        Args:
            row: its columns, but for the revision.

        Raises:
            Conflict: there is such a run.
        """
        with self._store.writing() as connection:
            if select_runs(connection, runs.c.id == row["id"]):
                raise Conflict(f"run {row['id']} is known")
            revision = newest_revision(connection) + 1
            gone = deleted_runs.c.run_id == row["id"]
            connection.execute(sa.delete(deleted_runs).where(gone))
            now = self._clock()
            active = {"active_since": now, "launched_at": now} if row["state"] in ACTIVE else {}
            connection.execute(sa.insert(runs).values({**row, **active, "revision": revision}))
            run = get_run(connection, row["id"])
            remember(connection, run, now)
        _log.info("run adopted", run=run.id, state=str(run.state))
        self._changed()
        return run

    def went_on(self, run_id: str, wanted: Wanted, columns: Mapping[str, Any]) -> Run:
        """Records that a run has had further attempts that its row does not know.

        It is active then: the next look at it finds the process of the last attempt, or its end.
        """

        def decide(run: Run) -> Change:
            state = RunState.RUNNING if wanted is Wanted.RUNNING else RunState.STOPPING
            message = "the database was older than its folder, whose last attempt counts"
            more = {**columns, "resume_at": None, "waits_for": None, "stop_sent_at": None}
            return Change(state, wanted, None, message, more, mends=True)

        return self._change(run_id, decide)

    # ---- called by the reconcile loop ----------------------------------------------------------

    def claim(self, run_id: str, slots: tuple[str, ...], threads: int = 1) -> Run | None:
        """Returns the run as starting on `slots`, or None if it is no longer queued, or deleted.

        `threads` is the number of CPU threads of each of its processes.

        Called before its process is started: a later loop that finds a starting run without a pid
        looks for the process before it starts one.
        """
        is_mine = False

        def decide(run: Run) -> Change | None:
            nonlocal is_mine
            change = decisions.claimed(run, slots, threads, self._clock())
            is_mine = change is not None
            return change

        try:
            run = self._change(run_id, decide)
        except NotFound:
            return None
        return run if is_mine else None

    def requeue(self, run_id: str) -> Run:
        """Returns the interrupted run, queued again if it still resumes by itself."""
        return self._change(run_id, decisions.requeued)

    def healed(self, run: Run) -> Run:
        """Returns the run, queued again if it still waits for what has now come true."""
        return self._change(
            run.id,
            lambda now: (
                decisions.requeued(now)
                if (now.attempt, now.reason) == (run.attempt, run.reason)
                else None
            ),
        )

    def has_process(self, run_id: str, process: Identity) -> Run:
        """Records which process trains the run."""

        def decide(run: Run) -> Change:
            columns: dict[str, Any] = asdict(process)
            if run.pid != process.pid:
                columns["process_create_time"] = None
            return Change.of_columns(run, **columns)

        return self._change(run_id, decide)

    def stop_sent(self, run_id: str) -> Run:
        """Records that the trainer is about to be sent SIGTERM."""
        return self._change(run_id, lambda run: Change.of_columns(run, stop_sent_at=self._clock()))

    def saw(self, run_id: str, status: Status) -> Run:
        """Records the status of a living trainer, if there is news in it."""
        return self._change(run_id, lambda run: decisions.told(run, status))

    def troubled(self, run_id: str, reason: str, message: str) -> Run:
        """Says on an active run why the control plane cannot see it; a good status clears it.

        Args:
            reason: one of record.TROUBLES.
        """

        return self._change(run_id, lambda run: decisions.troubled(run, reason, message))

    def noticed(self, facts: Mapping[str, tuple[RunState, Mapping[str, Any]]]) -> None:
        """Records facts about runs that change with time alone, in one transaction.

        Args:
            facts: by run id: the state that the facts are about, and the columns. A run that has
                left that state meanwhile is passed over. An alert comes with a `stalled_since`
                or `overdue_since` that it did not have.
        """
        if not facts:
            return
        with self._store.writing() as connection:
            revision = newest_revision(connection)
            alerting: list[tuple[AlertKind, str]] = []
            alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}  # by the columns to set
            for number, (run_id, (state, columns)) in enumerate(facts.items(), start=1):
                alerting += _alerts_of(connection, run_id, state, columns)
                row = {"its_id": run_id, "its_state": state, "to_revision": revision + number}
                row |= {f"to_{name}": value for name, value in columns.items()}
                alike.setdefault(tuple(columns), []).append(row)
            # One statement for all of a long queue: it moves whenever a run starts.
            for names, rows in alike.items():
                connection.execute(_noticing(names), rows)
            for kind, run_id in alerting:
                run = get_run(connection, run_id)
                self._alerts.add(connection, kind, sentence(kind, run, self._clock()), run)
        self._changed()
        if alerting:
            self._alerts.added()

    def measured(self, sizes: Mapping[str, int | None]) -> None:
        """Records what run folders take on disk, in one transaction.

        Args:
            sizes: by run id; None means that the folder is gone, or not yet there.
        """
        if not sizes:
            return
        with self._store.writing() as connection:
            revision = first = newest_revision(connection)
            for run_id, num_bytes in sizes.items():
                values = {"disk_bytes": num_bytes, "revision": revision + 1}
                is_news = sa.and_(
                    runs.c.id == run_id, runs.c.disk_bytes.is_distinct_from(num_bytes)
                )
                revision += connection.execute(
                    sa.update(runs).where(is_news).values(values)
                ).rowcount
        if revision > first:
            self._changed()

    def ended(
        self,
        run_id: str,
        state: RunState,
        reason: str | None,
        message: str | None,
        status: Status | None = None,
        *,
        resumes: bool = False,
    ) -> Run:
        """Records that the trainer is gone, and the state that the run rests in.

        A wanted run whose end heals by itself goes on later, see runs/healing.py.

        Args:
            status: its last status in this attempt.
            resumes: with INTERRUPTED, the run is queued again as soon as possible.
        """

        def decide(run: Run) -> Change | None:
            if run.state not in ACTIVE:
                return None
            wanted = Wanted.STOPPED if state is RunState.STOPPED else None
            columns, text = {**NO_PROCESS, **decisions.seen(status)}, message
            if run.wanted is Wanted.RUNNING:
                if resumes:
                    columns["resume_at"] = self._clock()
                elif state is RunState.INTERRUPTED:
                    more, text = after_end(run, reason, message, status, self._clock())
                    columns |= more
            return Change(state, wanted, reason, text, columns)

        return self._change(run_id, decide)

    def crashed(self, run_id: str, reason: str, message: str, status: Status | None = None) -> Run:
        """Records that the trainer is gone without having been asked to stop.

        The run is interrupted; if it is wanted, it resumes after a delay that doubles, and fails
        after MAX_RESTARTS restarts in a row without a new checkpoint.
        """
        return self._change(
            run_id, lambda run: decisions.crashed(run, reason, message, status, self._clock())
        )

    def require_room_in(self, connection: sa.Connection, count: int = 1) -> None:
        """Does what `require_room` does, within a transaction."""
        query = sa.select(sa.func.count()).where(runs.c.state == RunState.QUEUED)
        waiting, most = connection.execute(query).scalar_one(), self._max_queued
        if waiting + count <= most:
            return
        if count > most > 0:
            raise InvalidRequest(
                f"{count} runs are more than the queue ever holds, {most}; make fewer, or start "
                "the control plane with a larger --max-queued-runs"
            )
        full = f"{most} runs wait in the queue, which is full"
        if count > 1:
            full = f"{waiting} runs wait in the queue, and {count} more would be above {most}"
        raise Overloaded(
            f"{full}; stop some, try again later, or start the control plane with a larger "
            "--max-queued-runs",
            retry_after_seconds=QUEUE_RETRY_SECONDS,
        )

    # ---- the one way to change ---------------------------------------------------------------

    def _change(
        self,
        run_id: str,
        decide: Callable[[Run], Change | None],
        require: Callable[[sa.Connection], None] = lambda connection: None,
    ) -> Run:
        """Returns the run after the change that `decide` returns, in one transaction.

        `require` may still refuse it. It reads through the same connection: if it waited for
        another one, callers that wait for this transaction could hold them all.

        Raises:
            NotFound: no such run.
            ValueError: `decide` chose a state that may not follow the present one.
        """
        now = self._clock()
        with self._store.writing() as connection:
            run = get_run(connection, run_id)
            change = decide(run)
            if change is None:
                return run
            require(connection)
            values = decisions.after_change(run, change, now)
            values["revision"] = newest_revision(connection) + 1
            state = change.state or run.state
            if state is not run.state:
                values.setdefault("overdue_since", None)
                goes_on = values.get("resume_at") is not None or values["waits_for"] is not None
                if state in RESTING and not goes_on:
                    values["stop_at"] = None
            connection.execute(sa.update(runs).where(runs.c.id == run_id).values(values))
            if state is RunState.QUEUED:
                set_place(connection, run_id)
            after = get_run(connection, run_id)
            was_asked = change.columns.get("stop_at") is not None
            if was_asked or (after.state, after.wanted) != (run.state, run.wanted):
                remember(connection, after, now)
            kind = kind_of_change(run, after)
            if kind is not None:
                self._alerts.add(connection, kind, sentence(kind, after, now), after)
        if after.state is not run.state:
            if after.state is RunState.QUEUED and after.reason == RESUMES:
                self.restarts[run.reason or "unknown"] += 1
            _log.info(
                "run changed",
                run=run_id,
                before=str(run.state),
                now=str(after.state),
                reason=after.reason,
                by=caller(),
            )
        self._changed()
        if kind is not None:
            self._alerts.added()
        return after


def _alerts_of(
    connection: sa.Connection, run_id: str, state: RunState, columns: Mapping[str, Any]
) -> list[tuple[AlertKind, str]]:
    """Returns the alerts that new facts about a run make, each with the run's id."""
    new = [name for name in ("stalled_since", "overdue_since") if columns.get(name) is not None]
    if not new:
        return []
    found = select_runs(connection, runs.c.id == run_id, runs.c.state == state)
    kinds = {
        AlertKind.STALLED if run.state in MOVING else AlertKind.WAITING
        for run in found
        for name in new
        if getattr(run, name) is None
    }
    return [(kind, run.id) for run in found for kind in kinds]


def _noticing(names: Iterable[str]) -> sa.Update:
    """Returns the statement that sets columns of a run in a given state, with named parameters."""
    values: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in (*names, "revision")}
    is_still = sa.and_(
        runs.c.id == sa.bindparam("its_id"), runs.c.state == sa.bindparam("its_state")
    )
    return sa.update(runs).where(is_still).values(values)
