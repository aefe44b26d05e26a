"""Reads tasks: one, those of a run, by state."""

from collections.abc import Collection

import sqlalchemy as sa

from control_plane.runs.record import newest_revision
from control_plane.runs.store import Store, tasks
from control_plane.tasks.record import Task, get_task, select_tasks
from lectern_common.run.status import RunState


class Tasks:
    """Reads the tasks in the store; `TaskCommands` changes them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, task_id: str) -> Task:
        """Returns one task. Raises NotFound."""
        with self._store.reading() as connection:
            return get_task(connection, task_id)

    def in_states(self, states: Collection[RunState]) -> list[Task]:
        """Returns all tasks in one of the states, oldest first."""
        with self._store.reading() as connection:
            return select_tasks(connection, tasks.c.state.in_(states))

    def in_line(self) -> list[Task]:
        """Returns the queued tasks, the next to start first."""
        return self.in_states([RunState.QUEUED])

    def queued(self) -> tuple[tuple[str, float], ...]:
        """Returns the id of each queued task and when it was queued, the next to start first."""
        query = sa.select(tasks.c.id, tasks.c.since).where(tasks.c.state == RunState.QUEUED)
        with self._store.reading() as connection:
            return tuple(tuple(row) for row in connection.execute(query.order_by(tasks.c.seq)))

    def waiting_to_restart(self) -> list[Task]:
        """Returns the interrupted tasks that are queued again after a delay, oldest first."""
        interrupted = tasks.c.state == RunState.INTERRUPTED
        with self._store.reading() as connection:
            found = select_tasks(connection, interrupted, tasks.c.resume_at.is_not(None))
        return [task for task in found if task.resumes_itself]

    def page(
        self,
        *,
        run_id: str | None = None,
        stage: str | None = None,
        states: Collection[RunState] = (),
        before_seq: int | None = None,
        limit: int = 50,
    ) -> tuple[list[Task], int]:
        """Returns tasks that meet every condition, newest first, and the store's revision."""
        conditions = []
        if run_id is not None:
            conditions.append(tasks.c.run_id == run_id)
        if stage is not None:
            conditions.append(tasks.c.stage == stage)
        if states:
            conditions.append(tasks.c.state.in_(states))
        if before_seq is not None:
            conditions.append(tasks.c.seq < before_seq)
        with self._store.reading() as connection:
            order = (tasks.c.seq.desc(),)
            found = select_tasks(connection, *conditions, order=order, limit=limit)
            return found, newest_revision(connection)
