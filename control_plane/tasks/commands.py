"""Creates, changes and deletes tasks, each in one transaction, as RunCommands does with runs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from control_plane.runs import decisions
from control_plane.runs.alerts import AlertKind, Alerts
from control_plane.runs.callers import caller
from control_plane.runs.commands import QUEUE_RETRY_SECONDS
from control_plane.runs.creation import new_id
from control_plane.runs.decisions import MAX_RESTART_DELAY_SECONDS, MAX_RESTARTS, RESUMES
from control_plane.runs.healing import HEALED, delay_seconds
from control_plane.runs.record import ACTIVE, Change, Wanted, get_run, newest_revision
from control_plane.runs.store import Store, deleted_runs, runs, tasks
from control_plane.tasks.record import Task, get_task, select_tasks
from lectern_common.errors import Conflict, NotFound, Overloaded
from lectern_common.logs import get_logger
from lectern_common.run.processes import Identity
from lectern_common.run.status import RESTING, RunState
from lectern_common.stages.status import TaskStatus

MAX_QUEUED_TASKS = 1000
# How often a task goes on by itself after an end that may heal; with the delays, for about an hour.
MAX_GOES = 15
_NO_PID = dict.fromkeys(("pid", "boot_id", "start_ticks"))
_NO_PROCESS = {**_NO_PID, "slots": None, "threads": None}

_log = get_logger()


class TaskCommands:
    """The only way to change tasks; `Tasks` reads them.

    Args:
        store: where they are kept.
        clock: Unix seconds.
        changed: called after each visible change; from any thread.
        alerts: gets those of tasks that fail; None means one with the same store and clock.
    """

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

    def create(
        self,
        stage: str,
        asked: Mapping[str, Any],
        run_id: str | None = None,
        *,
        device: str = "cpu",
    ) -> Task:
        """Returns a new queued task.

        Args:
            stage: its name.
            asked: the fields of its request, checked.
            run_id: of its run; None means that it belongs to none.
            device: auto, cpu or cuda: what it waits for. cpu is right for stages that only wait
                for, or move, what others compute.

        Raises:
            NotFound: no such run.
            Overloaded: too many tasks wait.
        """
        now = self._clock()
        with self._store.writing() as connection:
            if run_id is not None:
                get_run(connection, run_id)
            self._require_room(connection)

            def is_taken(task_id: str) -> bool:
                known = (
                    sa.select(table.c.id).where(table.c.id == task_id) for table in (runs, tasks)
                )
                return any(connection.execute(query).first() for query in known)

            task_id = new_id(stage, is_taken)
            row = {
                "id": task_id,
                "run_id": run_id,
                "stage": stage,
                "asked": dict(asked),
                "device": device,
                "by": caller(),
                "created_at": now,
                "wanted": Wanted.RUNNING,
                "state": RunState.QUEUED,
                "since": now,
                "revision": newest_revision(connection) + 1,
                "attempt": 0,
                "restarts": 0,
                "active_seconds": 0.0,
            }
            connection.execute(sa.insert(tasks).values(row))
            task = get_task(connection, task_id)
        _log.info("task created", task=task.id, of_run=run_id, by=caller())
        self._changed()
        return task

    def request_stop(self, task_id: str) -> Task:
        """Returns the task, now to be stopped. Repeating the request changes nothing.

        Raises:
            NotFound: no such task.
            Conflict: it has succeeded or failed.
        """

        def decide(task: Task) -> Change | None:
            change = decisions.stopped(task, "task")
            if change is None:
                return None
            columns = {key: value for key, value in change.columns.items() if key == "resume_at"}
            return Change(change.state, change.wanted, change.reason, change.message, columns)

        return self._change(task_id, decide)

    def request_resume(self, task_id: str) -> Task:
        """Returns the task, queued to go on with what it has done so far.

        Raises:
            NotFound: no such task.
            Conflict: it is active, waits already, or has succeeded.
            Overloaded: too many tasks wait.
        """

        def decide(task: Task) -> Change:
            if not task.resumable:
                raise Conflict(f"task {task_id} is {task.state}; there is nothing to resume")
            columns = {"restarts": 0, "resume_at": None}
            return Change(RunState.QUEUED, Wanted.RUNNING, columns=columns)

        return self._change(task_id, decide, self._require_room)

    def delete(self, task_id: str, set_aside: Callable[[], None]) -> None:
        """Deletes the row of a task that is at rest.

        Args:
            task_id: its id.
            set_aside: called once the task is known to be deletable, before its row goes.

        Raises:
            NotFound: no such task.
            Conflict: it is active or waits.
        """
        with self._store.writing() as connection:
            task = get_task(connection, task_id)
            if task.state not in RESTING or task.resumes_itself:
                what = f"is {task.state}"
                what += ", but goes on by itself" if task.state in RESTING else ""
                raise Conflict(
                    f"task {task_id} {what}; stop it first (`lectern tasks stop {task_id}`)"
                )
            set_aside()
            revision = newest_revision(connection) + 1
            connection.execute(sa.insert(deleted_runs).values(run_id=task_id, revision=revision))
            connection.execute(sa.delete(tasks).where(tasks.c.id == task_id))
        _log.info("task deleted", task=task_id, by=caller())
        self._changed()

    def adopt(self, row: Mapping[str, Any]) -> None:
        """Adds the row of a task that its folder describes, unless there is one.

        Args:
            row: its columns, but for the revision.
        """
        with self._store.writing() as connection:
            if not select_tasks(connection, tasks.c.id == row["id"]):
                values = {**row, "revision": newest_revision(connection) + 1}
                connection.execute(sa.insert(tasks).values(values))
        self._changed()

    # ---- called by the reconcile loop ----------------------------------------------------------

    def claim(self, run_id: str, slots: tuple[str, ...], threads: int = 1) -> Task | None:
        """Returns the task as starting on `slots`, or None if it no longer waits, or is deleted."""
        is_mine = False

        def decide(task: Task) -> Change | None:
            nonlocal is_mine
            change = decisions.claimed(task, slots, threads, self._clock(), _NO_PID)
            is_mine = change is not None
            return change

        try:
            task = self._change(run_id, decide)
        except NotFound:
            return None
        return task if is_mine else None

    def requeue(self, run_id: str) -> Task:
        """Returns the interrupted task, queued again if it still goes on by itself."""

        def decide(task: Task) -> Change | None:
            if not task.resumes_itself:
                return None
            message = f"goes on by itself; before: {task.message or task.reason}"
            return Change(RunState.QUEUED, None, RESUMES, message, {"resume_at": None})

        return self._change(run_id, decide)

    def has_process(self, run_id: str, process: Identity) -> Task:
        """Records which process does the task."""
        return self._change(run_id, lambda task: Change.of_columns(task, **asdict(process)))

    def stop_sent(self, run_id: str) -> Task:
        """Records that its process is about to be sent SIGTERM."""
        return self._change(
            run_id, lambda task: Change.of_columns(task, stop_sent_at=self._clock())
        )

    def saw(self, run_id: str, status: TaskStatus) -> Task:
        """Records the status of a living process, if there is news in it."""
        return self._change(run_id, lambda task: decisions.told(task, status))

    def troubled(self, run_id: str, reason: str, message: str) -> Task:
        """Says on an active task why the control plane cannot see it; a good status clears it."""
        return self._change(run_id, lambda task: decisions.troubled(task, reason, message))

    def noticed(self, facts: Mapping[str, tuple[RunState, Mapping[str, Any]]]) -> None:
        """Records facts about tasks that change with time alone; see RunCommands.noticed."""
        for task_id, (state, columns) in facts.items():

            def decide(
                task: Task, state: RunState = state, columns: Mapping[str, Any] = columns
            ) -> Change | None:
                return Change.of_columns(task, **columns) if task.state is state else None

            try:
                self._change(task_id, decide)
            except NotFound:  # it has been deleted since
                continue

    def ended(
        self,
        run_id: str,
        state: RunState,
        reason: str | None,
        message: str | None,
        status: TaskStatus | None = None,
        *,
        resumes: bool = False,
    ) -> Task:
        """Records that the process is gone, and the state that the task rests in.

        A wanted task whose end may heal by itself goes on after a delay, up to MAX_GOES times.
        """

        def decide(task: Task) -> Change | None:
            if task.state not in ACTIVE:
                return None
            wanted = Wanted.STOPPED if state is RunState.STOPPED else None
            columns: dict[str, Any] = {**_NO_PROCESS, **decisions.seen(status)}
            goes_on = state is RunState.INTERRUPTED and task.wanted is Wanted.RUNNING
            if goes_on and resumes:
                columns["resume_at"] = self._clock()
            elif goes_on and reason in HEALED and task.restarts < MAX_GOES:
                columns["restarts"] = task.restarts + 1
                columns["resume_at"] = self._clock() + delay_seconds(task.restarts)
            return Change(state, wanted, reason, message, columns)

        return self._change(run_id, decide)

    def crashed(
        self, run_id: str, reason: str, message: str, status: TaskStatus | None = None
    ) -> Task:
        """Records that the process is gone without having been asked to stop.

        The task is interrupted; if it is wanted, it goes on after a delay that doubles, and fails
        after MAX_RESTARTS restarts.
        """

        def decide(task: Task) -> Change | None:
            if task.state not in ACTIVE:
                return None
            columns: dict[str, Any] = {**_NO_PROCESS, **decisions.seen(status)}
            if task.wanted is Wanted.STOPPED:
                return Change(RunState.INTERRUPTED, None, reason, message, columns)
            if task.restarts >= MAX_RESTARTS:
                text = f"ended {task.restarts + 1} times; last: {message}"
                return Change(RunState.FAILED, None, "crash_loop", text, columns)
            delay = min(2.0**task.restarts, MAX_RESTART_DELAY_SECONDS)
            columns |= {"restarts": task.restarts + 1, "resume_at": self._clock() + delay}
            return Change(RunState.INTERRUPTED, None, reason, message, columns)

        return self._change(run_id, decide)

    # ---- the one way to change -----------------------------------------------------------------

    def _change(
        self,
        task_id: str,
        decide: Callable[[Task], Change | None],
        require: Callable[[sa.Connection], None] = lambda connection: None,
    ) -> Task:
        """Returns the task after the change that `decide` returns, in one transaction.

        Raises:
            NotFound: no such task.
            ValueError: `decide` chose a state that may not follow the present one.
        """
        now = self._clock()
        with self._store.writing() as connection:
            task = get_task(connection, task_id)
            change = decide(task)
            if change is None:
                return task
            require(connection)
            values = decisions.after_change(task, change, now)
            values["revision"] = newest_revision(connection) + 1
            connection.execute(sa.update(tasks).where(tasks.c.id == task_id).values(values))
            after = get_task(connection, task_id)
            failed = _has_failed(task, after)
            if failed is not None:
                self._alerts.add(connection, AlertKind.FAILED, failed, task=after)
        if after.state is not task.state:
            _log.info(
                "task changed",
                task=task_id,
                before=str(task.state),
                now=str(after.state),
                reason=after.reason,
                by=caller(),
            )
        self._changed()
        if failed is not None:
            self._alerts.added()
        return after

    def _require_room(self, connection: sa.Connection) -> None:
        query = sa.select(sa.func.count()).where(tasks.c.state == RunState.QUEUED)
        if connection.execute(query).scalar_one() >= MAX_QUEUED_TASKS:
            raise Overloaded(
                f"{MAX_QUEUED_TASKS} tasks wait in the queue, which is full; stop some, or try "
                "again later",
                retry_after_seconds=QUEUE_RETRY_SECONDS,
            )


def _has_failed(before: Task, after: Task) -> str | None:
    """Returns a sentence if a change makes the task fail, or wait for a person."""
    waits = after.state is RunState.INTERRUPTED and after.wanted is Wanted.RUNNING
    if after.state is before.state or after.resumes_itself:
        return None
    if after.state is not RunState.FAILED and not waits:
        return None
    of_run = "" if after.run_id is None else f" of run {after.run_id}"
    why = ": ".join(filter(None, (after.reason, after.message)))
    how = "failed" if after.state is RunState.FAILED else "was interrupted and waits for you"
    return f"the task {after.id}{of_run} {how}: {why}"
