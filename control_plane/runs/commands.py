"""Creates, changes and deletes runs, each in one transaction.

Every change goes through `RunCommands._change`: one function, one transaction. It reads the row,
decides the change, refuses a step that `NEXT` does not allow, and writes row and history together.
The decisions are the functions below the class.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa
import structlog

from control_plane.runs.callers import caller
from control_plane.runs.healing import HEALED, after_end, goes_so_far
from control_plane.runs.queries import run_made_by_key
from control_plane.runs.record import (
    ACTIVE,
    NEXT,
    PRIORITY,
    TROUBLES,
    Change,
    Run,
    Wanted,
    get_run,
    newest_revision,
    select_runs,
)
from control_plane.runs.store import Store, deleted_runs, history, idempotency_keys, runs
from lectern_common.errors import Conflict, NotFound, Overloaded
from lectern_common.run.processes import Identity
from lectern_common.run.status import EARLY_STOPPED, RESTING, RunState, Status
from lectern_common.run.untrusted import cut
from lectern_common.spec.run_spec import (
    LABELS,
    RunSpec,
    require_more_to_do,
    require_resumable,
)
from lectern_common.teacher.identity import TeacherIdentity

MAX_QUEUED = 1000
QUEUE_RETRY_SECONDS = 60
MAX_RESTARTS = 5
MAX_RESTART_DELAY_SECONDS = 60.0
HEARTBEAT_NEWS_SECONDS = 5.0  # how often a status that differs only in its heartbeat is stored
_MAX_NAME_IN_ID = 56  # with "-" and the suffix, an id has at most 63 characters
_SUFFIX_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
_NO_PID = dict.fromkeys(("pid", "process_create_time", "boot_id", "start_ticks"))
_NO_PROCESS = {
    **_NO_PID,
    "slots": None,
    "threads": None,
    "stale_since": None,
    "stalled_since": None,
}

_log = structlog.get_logger()


class RunCommands:
    """The only way to change runs; `Runs` reads them.

    Args:
        store: where they are kept.
        clock: Unix seconds.
        changed: called after each visible change; from any thread.
        max_queued: how many runs may wait; a request for one more is refused.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], float] = time.time,
        changed: Callable[[], None] = lambda: None,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._store = store
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
    ) -> Run:
        """Returns a new queued run, or the run that an earlier request with this key made.

        Args:
            key: the client's Idempotency-Key.
            request_sha256: hash of the body that came with it.
            id_taken: returns True for ids in use outside the store, such as by a folder.
            teacher: the teacher that the run is accepted with, the only one it trains with.

        Raises:
            InvalidRequest: the key was used with another body.
            Overloaded: the queue is full.
        """
        now = self._clock()
        with self._store.writing() as connection:
            made = run_made_by_key(connection, key, request_sha256)
            if made is not None:
                return made
            self._require_room(connection)
            run_id = _new_id(spec.name)
            while id_taken(run_id) or select_runs(connection, runs.c.id == run_id):
                run_id = _new_id(spec.name)
            revision = newest_revision(connection) + 1
            values = {**_new_row(run_id, spec, teacher, now), "revision": revision}
            connection.execute(sa.insert(runs).values(values))
            _set_place(connection, run_id)
            run = get_run(connection, run_id)
            _remember(connection, run, now)
            if key is not None:
                connection.execute(
                    sa.insert(idempotency_keys).values(
                        key=key, request_sha256=request_sha256, run_id=run_id, created_at=now
                    )
                )
        _log.info("run created", run=run_id, by=caller())
        self._changed()
        return run

    def require_room(self) -> None:
        """Raises Overloaded if the queue is full; asked before the checks of a run, which cost."""
        with self._store.reading() as connection:
            self._require_room(connection)

    def request_stop(self, run_id: str) -> Run:
        """Returns the run, now to be stopped. Repeating the request changes nothing.

        Raises:
            NotFound: no such run.
            Conflict: it has succeeded or failed.
        """
        return self._change(run_id, _stopped)

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
            require_goes_on(run, spec)
            return Change(
                RunState.QUEUED,
                Wanted.RUNNING,
                columns={
                    "spec": spec.model_dump(mode="json"),
                    "restarts": 0,
                    "heals": 0,
                    "resume_at": None,
                },
            )

        return self._change(run_id, decide, self._require_room)

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

    def delete(self, run_id: str, set_aside: Callable[[], None]) -> None:
        """Deletes the rows of a run that is not active; `changed_since` then has a DeletedRun.

        Args:
            set_aside: called once the run is known to be deletable, before its rows go.

        Raises:
            NotFound: no such run.
            Conflict: it is active, or would resume by itself.
        """
        with self._store.writing() as connection:
            run = get_run(connection, run_id)
            if run.state not in RESTING or run.resumes_itself:
                what = "resumes by itself" if run.state in RESTING else f"is {run.state}"
                raise Conflict(f"run {run_id} {what}; stop it first (`lectern runs stop {run_id}`)")
            set_aside()
            revision = newest_revision(connection) + 1
            connection.execute(sa.insert(deleted_runs).values(run_id=run_id, revision=revision))
            for table in (history, idempotency_keys):
                connection.execute(sa.delete(table).where(table.c.run_id == run_id))
            connection.execute(sa.delete(runs).where(runs.c.id == run_id))
        _log.info("run deleted", run=run_id, by=caller())
        self._changed()

    # ---- called by the reconcile loop ----------------------------------------------------------

    def claim(self, run_id: str, slots: tuple[str, ...], threads: int = 1) -> Run | None:
        """Returns the run as starting on `slots`, or None if it is no longer queued, or deleted.

        `threads` is the number of CPU threads of each of its processes.

        Called before its process is started: a later loop that finds a starting run without a pid
        looks for the process before it starts one.
        """
        claimed = False

        def decide(run: Run) -> Change | None:
            nonlocal claimed
            claimed = run.state is RunState.QUEUED
            columns = {
                "slots": list(slots),
                "threads": threads,
                "attempt": run.attempt + 1,
                "launched_at": self._clock(),
                **_NO_PID,
                "stop_sent_at": None,
                "resume_at": None,
            }
            return Change(RunState.STARTING, columns=columns) if claimed else None

        try:
            run = self._change(run_id, decide)
        except NotFound:
            return None
        return run if claimed else None

    def requeue(self, run_id: str) -> Run:
        """Returns the interrupted run, queued again if it still resumes by itself."""
        return self._change(run_id, _requeued)

    def healed(self, run: Run) -> Run:
        """Returns the run, queued again if it still waits for what has now come true."""
        return self._change(
            run.id,
            lambda now: (
                _requeued(now) if (now.attempt, now.reason) == (run.attempt, run.reason) else None
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
        return self._change(run_id, lambda run: _told(run, status))

    def troubled(self, run_id: str, reason: str, message: str) -> Run:
        """Says on an active run why the control plane cannot see it; a good status clears it.

        Args:
            reason: one of record.TROUBLES.
        """

        def decide(run: Run) -> Change | None:
            if run.state not in ACTIVE or (run.reason, run.message) == (reason, cut(message)):
                return None
            return Change(None, None, reason, message)

        return self._change(run_id, decide)

    def noticed(self, facts: Mapping[str, tuple[RunState, Mapping[str, Any]]]) -> None:
        """Records facts about runs that change with time alone, in one transaction.

        Args:
            facts: by run id: the state that the facts are about, and the columns. A run that has
                left that state meanwhile is passed over.
        """
        if not facts:
            return
        with self._store.writing() as connection:
            revision = newest_revision(connection)
            for run_id, (state, columns) in facts.items():
                revision += 1
                is_still = sa.and_(runs.c.id == run_id, runs.c.state == state)
                values = {**columns, "revision": revision}
                connection.execute(sa.update(runs).where(is_still).values(values))
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
            columns, text = {**_NO_PROCESS, **_seen(status)}, message
            if run.wanted is Wanted.RUNNING:
                if resumes:
                    columns["resume_at"] = self._clock()
                elif state is RunState.INTERRUPTED:
                    more, text = after_end(run, reason, message, status, self._clock())
                    columns |= more
            return Change(state, None, reason, text, columns)

        return self._change(run_id, decide)

    def crashed(self, run_id: str, reason: str, message: str, status: Status | None = None) -> Run:
        """Records that the trainer is gone without having been asked to stop.

        The run is interrupted; if it is wanted, it resumes after a delay that doubles, and fails
        after MAX_RESTARTS restarts in a row without a new checkpoint.
        """
        return self._change(
            run_id, lambda run: _crashed(run, reason, message, status, self._clock())
        )

    def _require_room(self, connection: sa.Connection) -> None:
        waiting = sa.select(sa.func.count()).where(runs.c.state == RunState.QUEUED)
        if connection.execute(waiting).scalar_one() >= self._max_queued:
            raise Overloaded(
                f"{self._max_queued} runs wait in the queue, which is full; stop some, try again "
                "later, or start the control plane with a larger --max-queued-runs",
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
            state = change.state or run.state
            if state is not run.state and state not in NEXT[run.state]:
                raise ValueError(f"run {run_id} is {run.state}, which cannot become {state}")
            values: dict[str, Any] = {
                **change.columns,
                "reason": change.reason,
                "message": None if change.message is None else cut(change.message),
                "revision": newest_revision(connection) + 1,
            }
            if change.wanted is not None:
                values["wanted"] = change.wanted
            if state is not run.state:
                values |= {"state": state, "since": now, **_active_time(run, state, now)}
                values = {"queue_position": None, "waits_for": None, **values}
            connection.execute(sa.update(runs).where(runs.c.id == run_id).values(values))
            if state is RunState.QUEUED:
                _set_place(connection, run_id)
            after = get_run(connection, run_id)
            if (after.state, after.wanted) != (run.state, run.wanted):
                _remember(connection, after, now)
        if after.state is not run.state:
            _log.info(
                "run changed",
                run=run_id,
                before=str(run.state),
                now=str(after.state),
                reason=after.reason,
                by=caller(),
            )
        self._changed()
        return after


def require_goes_on(run: Run, spec: RunSpec) -> None:
    """Raises unless the run can resume with `spec`.

    Raises:
        Conflict: the run is active, or has nothing more to do.
        InvalidSpec: names every field that a resume may not change, or not to that value.
    """
    if run.state is RunState.STOPPING:
        raise Conflict(f"run {run.id} is stopping; resume it once it has stopped")
    if run.state not in RESTING:
        raise Conflict(f"run {run.id} is {run.state}; there is nothing to resume")
    before = run.run_spec
    require_resumable(before, spec, run.checkpoint_step)
    if run.state is RunState.SUCCEEDED:
        early, made = run.reason == EARLY_STOPPED, before.schedule.steps
        if early and run.last_status is not None:
            made = run.last_status.step
        require_more_to_do(run.id, before, spec, made, early=early)


def _stopped(run: Run) -> Change | None:
    """Raises Conflict if there is nothing to stop."""
    if run.state in (RunState.SUCCEEDED, RunState.FAILED):
        raise Conflict(f"run {run.id} has {run.state}; there is nothing to stop")
    if run.wanted is Wanted.STOPPED:
        return None
    if run.state in ACTIVE:
        return Change(RunState.STOPPING, Wanted.STOPPED, "stopped")
    if run.state is RunState.QUEUED:
        return Change(RunState.STOPPED, Wanted.STOPPED, "stopped")
    columns = {"resume_at": None, "waits_for": None}
    return Change(None, Wanted.STOPPED, run.reason, run.message, columns)


def _requeued(run: Run) -> Change | None:
    if not run.resumes_itself:
        return None
    why = ""
    columns: dict[str, Any] = {"resume_at": None}
    if run.reason in HEALED:
        why = f": {HEALED[run.reason]}"
        columns |= {"restarts": run.restarts + 1, "heals": run.heals + 1}
    message = f"resumes by itself{why}; before: {run.message or run.reason}"
    return Change(RunState.QUEUED, None, "resumes", message, columns)


def _told(run: Run, status: Status) -> Change | None:
    # A run told to stop stays stopping, and a living one has not ended, whatever its status says.
    takes_state = (
        run.state in ACTIVE - {RunState.STOPPING}
        and status.state not in RESTING
        and status.state in (run.state, *NEXT[run.state])
    )
    moves = takes_state and status.state is not run.state
    heals = run.reason in TROUBLES
    if run.state not in ACTIVE or not (moves or heals or _is_news(run.last_status, status)):
        return None
    if takes_state:
        return Change(status.state, None, status.reason, status.message, _seen(status))
    if heals:
        reason = "stopped" if run.wanted is Wanted.STOPPED else None
        return Change(None, None, reason, None, _seen(status))
    return Change.of_columns(run, **_seen(status))


def _crashed(
    run: Run, reason: str, message: str, status: Status | None, now: float
) -> Change | None:
    if run.state not in ACTIVE:
        return None
    goes, reached = goes_so_far(run, status)
    restarts = goes + 1
    columns = {**_NO_PROCESS, **_seen(status), "restart_checkpoint": reached}
    if run.wanted is Wanted.STOPPED:
        return Change(RunState.INTERRUPTED, None, reason, message, columns)
    if restarts > MAX_RESTARTS:
        text = f"ended {restarts} times in a row without a new checkpoint; last: {message}"
        return Change(RunState.FAILED, None, "crash_loop", text, columns)
    delay = min(2.0 ** (restarts - 1), MAX_RESTART_DELAY_SECONDS)
    columns |= {"restarts": restarts, "resume_at": now + delay}
    return Change(RunState.INTERRUPTED, None, reason, message, columns)


def _seen(status: Status | None) -> dict[str, Any]:
    """Returns the column for a status; none for None."""
    return {} if status is None else {"status": {**asdict(status), "state": str(status.state)}}


def _is_news(before: Status | None, after: Status) -> bool:
    if before is None or _timeless(before) != _timeless(after):
        return True
    return abs(after.heartbeat - before.heartbeat) >= HEARTBEAT_NEWS_SECONDS


def _timeless(status: Status) -> Status:
    """Returns the status without what changes with time alone."""
    return replace(status, heartbeat=0, activity_seconds=None, usual_seconds=None)


def _active_time(run: Run, state: RunState, now: float) -> dict[str, Any]:
    if state in ACTIVE:
        return {} if run.active_since is not None else {"active_since": now}
    return {"active_since": None, "active_seconds": run.elapsed_seconds(now)}


def _new_id(name: str) -> str:
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(6))
    return f"{name[:_MAX_NAME_IN_ID].rstrip('-')}-{suffix}"


def _new_row(
    run_id: str, spec: RunSpec, teacher: TeacherIdentity | None, now: float
) -> dict[str, Any]:
    return {
        "id": run_id,
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "teacher": None if teacher is None else asdict(teacher),
        "created_at": now,
        "wanted": Wanted.RUNNING,
        "state": RunState.QUEUED,
        "since": now,
        "attempt": 0,
        "restarts": 0,
        "active_seconds": 0.0,
    }


def _set_place(connection: sa.Connection, run_id: str) -> None:
    """Sets a queued run's place: behind those before it. The loop moves the others."""
    priority, seq = connection.execute(
        sa.select(PRIORITY, runs.c.seq).where(runs.c.id == run_id)
    ).one()
    is_before = sa.or_(priority < PRIORITY, sa.and_(priority == PRIORITY, runs.c.seq < seq))
    before = sa.select(sa.func.count()).where(runs.c.state == RunState.QUEUED, is_before)
    place = connection.execute(before).scalar_one() + 1
    connection.execute(sa.update(runs).where(runs.c.id == run_id).values(queue_position=place))


def _remember(connection: sa.Connection, run: Run, now: float) -> None:
    connection.execute(
        sa.insert(history).values(
            run_id=run.id,
            at=now,
            attempt=run.attempt,
            wanted=run.wanted,
            state=run.state,
            reason=run.reason,
            message=run.message,
            by=caller(),
        )
    )
