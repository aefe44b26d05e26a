"""Creates, changes and deletes tasks, each in one transaction, as RunCommands does with runs."""

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from control_plane.runs import decisions
from control_plane.runs.alerts import AlertKind
from control_plane.runs.callers import caller
from control_plane.runs.commands import QUEUE_RETRY_SECONDS, JobCommands
from control_plane.runs.creation import new_id, remember_key
from control_plane.runs.decisions import NO_PROCESS, RESUMES
from control_plane.runs.healing import HEALED, delay_seconds
from control_plane.runs.queries import id_made_by_key
from control_plane.runs.record import ACTIVE, Change, Wanted, get_run, newest_revision
from control_plane.runs.store import runs, tasks
from control_plane.tasks.record import Task, get_task, select_tasks
from lectern_common.errors import Conflict, NotFound, Overloaded
from lectern_common.logs import get_logger
from lectern_common.run.status import RunState
from lectern_common.stages.status import TaskStatus

MAX_QUEUED_TASKS = 1000
# How often a task goes on by itself after an end that may heal; with the delays, for about an hour.
MAX_GOES = 15

_log = get_logger()


class TaskCommands(JobCommands[Task]):
    """The only way to change tasks; `Tasks` reads them."""

    noun = "task"
    table = tasks
    progress = "getting further"

    def create(
        self,
        stage: str,
        asked: Mapping[str, Any],
        run_id: str | None = None,
        *,
        device: str = "cpu",
        key: str | None = None,
        request_sha256: str = "",
    ) -> Task:
        """Returns a new queued task, or the task that an earlier request with this key made.

        Args:
            stage: its name.
            asked: the fields of its request, checked.
            run_id: of its run; None means that it belongs to none.
            device: auto, cpu or cuda: what it waits for. cpu is right for stages that only wait
                for, or move, what others compute.
            key: the client's Idempotency-Key.
            request_sha256: hash of the request that came with it.

        Raises:
            NotFound: no such run.
            InvalidRequest: the key was used with another request.
            Overloaded: too many tasks wait.
        """
        now = self._clock()
        with self._store.writing() as connection:
            if run_id is not None:
                get_run(connection, run_id)
            made = id_made_by_key(connection, key, request_sha256)
            if made is not None:
                return get_task(connection, made)
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
            remember_key(connection, key, request_sha256, task_id, now)
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
            self._require_deletable(task)
            set_aside()
            self._remove(connection, task_id)
        self._was_removed(task_id)

    def adopt(self, row: Mapping[str, Any]) -> None:
        """Adds the row of a task that its folder describes, unless there is one.

        It may have been deleted before.

        Args:
            row: its columns, but for the revision.
        """
        with self._store.writing() as connection:
            if not select_tasks(connection, tasks.c.id == row["id"]):
                self._put_back(connection, row)
        self._changed()

    # ---- called by the reconcile loop ----------------------------------------------------------

    def requeue(self, run_id: str) -> Task:
        """Returns the interrupted task, queued again if it still goes on by itself."""

        def decide(task: Task) -> Change | None:
            if not task.resumes_itself:
                return None
            message = f"goes on by itself; before: {task.message or task.reason}"
            return Change(RunState.QUEUED, None, RESUMES, message, {"resume_at": None})

        return self._change(run_id, decide)

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

        A wanted task whose end may heal by itself goes on after a delay, up to MAX_GOES times in a
        row without getting further.
        """

        def decide(task: Task) -> Change | None:
            if task.state not in ACTIVE:
                return None
            wanted = Wanted.STOPPED if state is RunState.STOPPED else None
            columns = {**decisions.without(task, NO_PROCESS), **decisions.seen(status)}
            goes_on = state is RunState.INTERRUPTED and task.wanted is Wanted.RUNNING
            if goes_on and resumes:
                columns["resume_at"] = self._clock()
            elif goes_on and reason in HEALED:
                goes, reached = task.goes_so_far(status)
                columns |= reached
                if goes < MAX_GOES:
                    columns["restarts"] = goes + 1
                    columns["resume_at"] = self._clock() + delay_seconds(goes)
            return Change(state, wanted, reason, message, columns)

        return self._change(run_id, decide)

    # ---- what follows from a change ------------------------------------------------------------

    def _get(self, connection: sa.Connection, job_id: str) -> Task:
        return get_task(connection, job_id)

    def _remember(
        self, connection: sa.Connection, before: Task, change: Change, after: Task, now: float
    ) -> bool:
        failed = _has_failed(before, after)
        if failed is not None:
            self._alerts.add(connection, AlertKind.FAILED, failed, task=after)
        return failed is not None

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
