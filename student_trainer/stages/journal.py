"""Writes the status of a task while its stage works: every second, and at every change of state."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable

from lectern_common.logs import get_logger
from lectern_common.run.processes import identity_of
from lectern_common.run.status import HEARTBEAT_SECONDS, RunState, attempt_of_environment
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.status import MAX_SAID, TaskStatus
from student_trainer.journal.disk_full import Reserve
from student_trainer.stop import Stop

# Over how much of the last time the rate is taken.
_PACE_SECONDS = 30.0

_log = get_logger()


class TaskJournal:
    """Writes a task's status. Use as a context manager; leaving it writes the last status.

    Args:
        folder: of the task; this process holds its lock.
        stage: its name.
        stop: once requested, a running task is `stopping`.
        clock: returns Unix seconds.
        monotonic: returns seconds that never go back.
    """

    def __init__(
        self,
        folder: TaskFolder,
        stage: str,
        stop: Stop,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._stop = stop
        self._clock, self._monotonic = clock, monotonic
        self._identity = identity_of(os.getpid())
        self._attempt = attempt_of_environment()
        self._stage = stage
        self._state, self._since = RunState.STARTING, clock()
        self._shown: RunState | None = None
        self._reason: str | None = None
        self._message: str | None = None
        self._field: str | None = None
        self._doing: str | None = None
        self._done = self._of = 0
        self._said: deque[str] = deque(maxlen=MAX_SAID)
        self._num_said = 0
        self._seen: deque[tuple[float, int]] = deque()  # (time, done) of the last reports
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # keeps the order; `report` only waits for `_lock`
        self._reserve = Reserve(folder.path / ".reserve")
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> "TaskJournal":
        self._reserve.take()
        self._publish()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        self._publish()
        self._reserve.give_up()

    def report(self, doing: str, done: int, of: int) -> None:
        """Is a stage's `Report`; never waits for the disk."""
        now = self._monotonic()
        with self._lock:
            if of == 0 and done == 0:
                self._said.append(doing)
                self._num_said += 1
                return
            if doing != self._doing or done < self._done:
                self._seen.clear()
            self._doing, self._done, self._of = doing, done, of
            if not self._seen or done > self._seen[-1][1]:
                self._seen.append((now, done))
            while len(self._seen) > 2 and self._seen[1][0] < now - _PACE_SECONDS:
                self._seen.popleft()

    def set_state(
        self,
        state: RunState,
        reason: str | None = None,
        message: str | None = None,
        field: str | None = None,
    ) -> None:
        """Sets and writes a new state."""
        with self._lock:
            self._state, self._reason, self._message, self._field = state, reason, message, field
        self._publish()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._publish()

    def _publish(self) -> None:
        """Writes status.json. Never raises OSError."""
        with self._writing:
            with self._lock:
                status = self._next_status()
            try:
                self._reserve.spent_on(lambda: self._folder.write_status(status))
            except OSError as error:  # a full disk must not end the heartbeat
                _log.error("status_not_written", error=str(error))

    def _next_status(self) -> TaskStatus:
        now, state = self._clock(), self._state
        if state in (RunState.STARTING, RunState.RUNNING) and self._stop.requested:
            state = RunState.STOPPING
        if state is not self._shown:
            self._shown, self._since = state, now
        return TaskStatus(
            task_id=self._folder.task_id,
            stage=self._stage,
            state=state,
            since=min(self._since, now),  # the clock may have jumped back
            heartbeat=now,
            pid=os.getpid(),
            boot_id=None if self._identity is None else self._identity.boot_id,
            start_ticks=None if self._identity is None else self._identity.start_ticks,
            attempt=self._attempt,
            reason=self._reason,
            message=self._message,
            field=self._field,
            doing=self._doing,
            done=self._done,
            of=self._of,
            per_second=self._pace(),
            said=list(self._said),
            num_said=self._num_said,
        )

    def _pace(self) -> float | None:
        """Returns how many are done in a second; slower the longer none is done."""
        if len(self._seen) < 2:
            return None
        began, before = self._seen[0]
        seconds = self._monotonic() - began
        return (self._seen[-1][1] - before) / seconds if seconds > 0 else None
