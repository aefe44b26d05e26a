"""Creates, changes and deletes runs, each in one transaction.

Every change of a run or task goes through `JobCommands._change`: one function, one transaction. It
reads the row, decides the change, refuses a step that `NEXT` does not allow, and writes row and
history together. The decisions are functions in `decisions.py`; `creation.py` makes the rows.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import sqlalchemy as sa

from control_plane.runs import decisions
from control_plane.runs.alerts import AlertKind, Alerts, kind_of_change, sentence
from control_plane.runs.callers import caller
from control_plane.runs.creation import Fork, insert_runs, remember, remember_key, set_place
from control_plane.runs.decisions import NO_PROCESS, RESUMES
from control_plane.runs.healing import after_end
from control_plane.runs.queries import run_made_by_key
from control_plane.runs.record import (
    ACTIVE,
    MOVING,
    Change,
    Job,
    JobStatus,
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
from lectern_common.run.processes import Handle
from lectern_common.run.status import RESTING, RunState, Status
from lectern_common.spec.run_spec import LABELS, RunSpec
from lectern_common.teacher.identity import TeacherIdentity

MAX_QUEUED = 1000
QUEUE_RETRY_SECONDS = 60

_Job = TypeVar("_Job", bound=Job)

_log = get_logger()


class JobCommands(Generic[_Job]):
    """Changes runs, or tasks, in the ways that both have.

    Args:
        store: where they are kept.
        clock: Unix seconds.
        changed: called after each visible change; from any thread.
        alerts: gets those that changes make; None means one with the same store and clock.
    """

    noun: ClassVar[str]
    table: ClassVar[sa.Table]
    progress: ClassVar[str]  # what begins the count of its restarts anew

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.time,
        changed: Callable[[], None] = lambda: None,
        alerts: Alerts | None = None,
    ) -> None:
        self._store = store
        self.room = store.room
        self._clock = clock
        self._changed = changed
        self._alerts = alerts or Alerts(store, clock)

    # ---- called by the reconcile loop ----------------------------------------------------------

    def claim(self, job_id: str, slots: tuple[str, ...], threads: int = 1) -> _Job | None:
        """Returns it as starting on `slots`, or None if it is no longer queued, or deleted.

        Called before its process is started: a later loop that finds one without a handle
        looks for the process before it starts one.

        Args:
            job_id: its id.
            slots: its devices.
            threads: CPU threads of each of its processes.
        """
        is_mine = False

        def decide(job: _Job) -> Change | None:
            nonlocal is_mine
            change = decisions.claimed(job, slots, threads, self._clock())
            is_mine = change is not None
            return change

        try:
            job = self._change(job_id, decide)
        except NotFound:
            return None
        return job if is_mine else None

    def has_process(self, job_id: str, handle: Handle) -> _Job:
        """Records which process, or job of a scheduler, works on it."""

        def decide(job: _Job) -> Change:
            of_another = decisions.without(job, ["process_create_time"])
            older = of_another if job.pid != handle.pid else {}
            return Change.of_columns(job, handle=str(handle), **older)

        return self._change(job_id, decide)

    def stop_sent(self, job_id: str) -> _Job:
        """Records that its process is about to be sent SIGTERM."""
        return self._change(job_id, lambda job: Change.of_columns(job, stop_sent_at=self._clock()))

    def saw(self, job_id: str, status: JobStatus) -> _Job:
        """Records the status of a living process, if there is news in it."""
        return self._change(job_id, lambda job: decisions.told(job, status))

    def troubled(self, job_id: str, reason: str, message: str) -> _Job:
        """Says on an active one why the control plane cannot see it; a good status clears it.

        Args:
            job_id: its id.
            reason: one of record.TROUBLES.
            message: the same in a sentence.
        """
        return self._change(job_id, lambda job: decisions.troubled(job, reason, message))

    def crashed(
        self, job_id: str, reason: str, message: str, status: JobStatus | None = None
    ) -> _Job:
        """Records that its process is gone without having been asked to stop.

        It is interrupted; if it is wanted, it goes on after a delay that doubles, and fails after
        MAX_RESTARTS restarts in a row without `progress`.
        """
        return self._change(
            job_id,
            lambda job: decisions.crashed(
                job, reason, message, status, self._clock(), self.progress
            ),
        )

    # ---- the one way to change, and to delete --------------------------------------------------

    def _change(
        self,
        job_id: str,
        decide: Callable[[_Job], Change | None],
        require: Callable[[sa.Connection], None] = lambda connection: None,
    ) -> _Job:
        """Returns the run or task after the change that `decide` returns, in one transaction.

        `require` may still refuse it. It reads through the same connection: if it waited for
        another one, callers that wait for this transaction could hold them all.

        Raises:
            NotFound: no such run or task.
            ValueError: `decide` chose a state that may not follow the present one.
        """
        now = self._clock()
        with self._store.writing() as connection:
            before = self._get(connection, job_id)
            change = decide(before)
            if change is None:
                return before
            require(connection)
            values = decisions.after_change(before, change, now)
            values["revision"] = newest_revision(connection) + 1
            state = change.state or before.state
            if state is not before.state:
                values |= self._at_new_state(state, values)
            self._write(connection, job_id, state, values)
            after = self._get(connection, job_id)
            alerts = self._remember(connection, before, change, after, now)
        if after.state is not before.state:
            self._count(before, after)
            _log.info(
                f"{self.noun} changed",
                **{self.noun: job_id},
                before=str(before.state),
                now=str(after.state),
                reason=after.reason,
                by=caller(),
            )
        self._changed()
        if alerts:
            self._alerts.added()
        return after

    def _get(self, connection: sa.Connection, job_id: str) -> _Job:
        """Returns one row. Raises NotFound."""
        raise NotImplementedError

    def _at_new_state(self, state: RunState, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns further columns of one that enters a state with these."""
        return {}

    def _write(
        self, connection: sa.Connection, job_id: str, state: RunState, values: Mapping[str, Any]
    ) -> None:
        connection.execute(sa.update(self.table).where(self.table.c.id == job_id).values(**values))

    def _remember(
        self, connection: sa.Connection, before: _Job, change: Change, after: _Job, now: float
    ) -> bool:
        """Writes what else follows from a change; returns whether it made an alert."""
        raise NotImplementedError

    def _count(self, before: _Job, after: _Job) -> None:
        """Counts a change of state."""

    def _require_deletable(self, job: _Job) -> None:
        if job.state in RESTING and not job.resumes_itself:
            return
        what = f"is {job.state}" + (", but resumes by itself" if job.state in RESTING else "")
        command = f"lectern {self.noun}s stop {job.id}"
        raise Conflict(f"{self.noun} {job.id} {what}; stop it first (`{command}`)")

    def _remove(self, connection: sa.Connection, job_id: str) -> None:
        """Removes its row; `changed_since` then has a DeletedRun."""
        revision = newest_revision(connection) + 1
        connection.execute(sa.insert(deleted_runs).values(run_id=job_id, revision=revision))
        made = idempotency_keys.c.run_id == job_id
        connection.execute(sa.delete(idempotency_keys).where(made))
        connection.execute(sa.delete(self.table).where(self.table.c.id == job_id))

    def _put_back(self, connection: sa.Connection, row: Mapping[str, Any]) -> None:
        """Inserts a row, but for its revision, even if it was removed before."""
        revision = newest_revision(connection) + 1
        gone = deleted_runs.c.run_id == row["id"]
        connection.execute(sa.delete(deleted_runs).where(gone))
        connection.execute(sa.insert(self.table).values({**row, "revision": revision}))

    def _was_removed(self, job_id: str) -> None:
        _log.info(f"{self.noun} deleted", **{self.noun: job_id}, by=caller())
        self._changed()


class RunCommands(JobCommands[Run]):
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

    noun = "run"
    table = runs
    progress = "a new checkpoint"

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.time,
        changed: Callable[[], None] = lambda: None,
        max_queued: int = MAX_QUEUED,
        alerts: Alerts | None = None,
    ) -> None:
        super().__init__(store, clock, changed, alerts)
        self.restarts: Counter[str] = Counter()
        self._max_queued = max_queued

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
            remember_key(connection, key, request_sha256, run.id, now)
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
            self._require_deletable(run)
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
            its_tasks = sa.select(tasks.c.id).where(tasks.c.run_id == run_id)
            of_tasks = idempotency_keys.c.run_id.in_(its_tasks)
            connection.execute(sa.delete(idempotency_keys).where(of_tasks))
            for table in (history, sweep_runs, tasks):
                connection.execute(sa.delete(table).where(table.c.run_id == run_id))
            self._remove(connection, run_id)
        self._was_removed(run_id)

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
            now = self._clock()
            active = {"active_since": now, "launched_at": now} if row["state"] in ACTIVE else {}
            self._put_back(connection, {**row, **active})
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
        query = sa.select(runs.c.id, runs.c.disk_bytes).where(runs.c.id.in_(list(sizes)))
        with self._store.writing() as connection:
            before = connection.execute(query).all()
            news = [run_id for run_id, num_bytes in before if num_bytes != sizes[run_id]]
            if not news:
                return
            revision = newest_revision(connection)
            rows = [
                {"of_run": run_id, "num_bytes": sizes[run_id], "number": revision + place}
                for place, run_id in enumerate(news, start=1)
            ]
            connection.execute(_MEASURING, rows)
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
            columns = {**decisions.without(run, NO_PROCESS), **decisions.seen(status)}
            text = message
            if run.wanted is Wanted.RUNNING:
                if resumes:
                    columns["resume_at"] = self._clock()
                elif state is RunState.INTERRUPTED:
                    more, text = after_end(run, reason, message, status, self._clock())
                    columns |= more
            return Change(state, wanted, reason, text, columns)

        return self._change(run_id, decide)

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

    # ---- what follows from a change ------------------------------------------------------------

    def _get(self, connection: sa.Connection, job_id: str) -> Run:
        return get_run(connection, job_id)

    def _at_new_state(self, state: RunState, values: Mapping[str, Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {"overdue_since": values.get("overdue_since")}
        goes_on = values.get("resume_at") is not None or values["waits_for"] is not None
        return columns | ({"stop_at": None} if state in RESTING and not goes_on else {})

    def _write(
        self, connection: sa.Connection, job_id: str, state: RunState, values: Mapping[str, Any]
    ) -> None:
        super()._write(connection, job_id, state, values)
        if state is RunState.QUEUED:
            set_place(connection, job_id)

    def _remember(
        self, connection: sa.Connection, before: Run, change: Change, after: Run, now: float
    ) -> bool:
        was_asked = change.columns.get("stop_at") is not None
        if was_asked or (after.state, after.wanted) != (before.state, before.wanted):
            remember(connection, after, now)
        kind = kind_of_change(before, after)
        if kind is not None:
            self._alerts.add(connection, kind, sentence(kind, after, now), after)
        return kind is not None

    def _count(self, before: Run, after: Run) -> None:
        if after.state is RunState.QUEUED and after.reason == RESUMES:
            self.restarts[before.reason or "unknown"] += 1


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


_MEASURING = (
    sa.update(runs)
    .where(runs.c.id == sa.bindparam("of_run"))
    .values(disk_bytes=sa.bindparam("num_bytes"), revision=sa.bindparam("number"))
)


def _noticing(names: Iterable[str]) -> sa.Update:
    """Returns the statement that sets columns of a run in a given state, with named parameters."""
    values: dict[str, Any] = {name: sa.bindparam(f"to_{name}") for name in (*names, "revision")}
    is_still = sa.and_(
        runs.c.id == sa.bindparam("its_id"), runs.c.state == sa.bindparam("its_state")
    )
    return sa.update(runs).where(is_still).values(values)
