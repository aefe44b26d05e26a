"""Reads and encodes every change once, and keeps the last ones for all streams.

One task asks the store what has changed, at most every FEED_SECONDS and only while a stream is
open. A stream keeps no queue, only its position: it sends what is kept after it, or, if that is too
long ago, reads the store itself. So a slow client costs no memory and loses nothing.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from control_plane.reading.events import event
from control_plane.reading.run_feed import RunFeed
from control_plane.reading.wakes import Wakes
from control_plane.runs.alerts import Alert
from control_plane.runs.queries import Changed, Runs
from control_plane.runs.record import DeletedRun, Run
from control_plane.tasks.record import Task
from control_plane.views.alerts import alert_view
from control_plane.views.tasks import task_view
from lectern_common.errors import Overloaded
from lectern_common.logs import get_logger

MAX_STREAMS = 256
FEED_SECONDS = 0.2
RETRY_SECONDS = 1.0  # after the database could not be read
MAX_KEPT_BYTES = 1 << 20
MAX_JOINED = 16  # answers to clients that are at the same place; each may have MAX_KEPT_BYTES
MAX_READERS = 8  # threads that read run folders; a disk that hangs delays only streams of runs

_Read = TypeVar("_Read")

_log = get_logger()


class Feed:
    """The last changes of all runs, encoded. Belongs to one event loop.

    Args:
        runs: reads the store.
        view: returns the model of a run.
        changed: wakes it.

    Attributes:
        streams: how many are open.
        closed: every stream ends.
    """

    def __init__(self, runs: Runs, view: Callable[[Run], BaseModel], changed: Wakes) -> None:
        self.runs = runs
        self.news = Wakes()
        self.streams = 0
        self.closed = False
        self._view = view
        self._changed = changed
        self._run_feeds: dict[str, RunFeed] = {}
        self._files = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="files")
        self._is_live = False
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._begin = self._end = 0  # revisions: all changes after `_begin` up to `_end` are kept
        self._history_seq = 0
        self._joined: dict[int, bytes] = {}  # what follows a revision, as one piece

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Counts a stream while it is open.

        Raises:
            Overloaded: MAX_STREAMS are open, or the control plane is stopping.
        """
        if self.closed:
            raise Overloaded("the control plane is stopping")
        if self.streams >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} event streams are open; close one, or try again later")
        self.streams += 1
        if self.streams == 1:
            self._changed.wake()
        try:
            yield
        finally:
            self.streams -= 1

    @contextmanager
    def of_run(self, run_id: str, metrics_path: Path) -> Iterator[RunFeed]:
        """Yields the feed of one run, which all of its streams share."""
        feed = self._run_feeds.get(run_id)
        if feed is None:
            begin = self._history_seq if self._is_live else None
            feed = self._run_feeds[run_id] = RunFeed(run_id, metrics_path, begin, self._files)
        feed.streams += 1
        try:
            yield feed
        finally:
            feed.streams -= 1
            if feed.streams == 0:
                feed.close()
                del self._run_feeds[run_id]

    async def read(self, function: Callable[..., _Read], *arguments: Any) -> _Read:
        """Returns what a function that reads run folders returns, off the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._files, function, *arguments)

    def close(self) -> None:
        """Ends every stream."""
        self.closed = True
        self._changed.wake()
        self.news.wake()
        for run in self._run_feeds.values():
            run.wake()

    async def follow(self) -> None:
        """Reads changes until it is closed or cancelled."""
        while not self.closed:
            changed = self._changed.next()
            try:
                more = await self._look()
            except SQLAlchemyError as error:  # busy or full: what is missed now comes later
                _log.error("changes not read", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not more:
                await changed.wait()
            await asyncio.sleep(FEED_SECONDS)  # changes come in bursts

    def after(self, revision: int) -> tuple[bytes, int] | None:
        """Returns the events after a revision and the revision of the last of them.

        None means that not all of them are kept: see `read_after`.
        """
        if not self._is_live or revision < self._begin:
            return None
        if revision >= self._end:
            return b"", revision
        joined = self._joined.get(revision)
        if joined is None:
            if len(self._joined) >= MAX_JOINED:
                self._joined.clear()
            joined = b"".join(data for at, data in self._kept if at > revision)
            self._joined[revision] = joined
        return joined, self._end

    def read_after(self, revision: int) -> tuple[bytes, int]:
        """Returns what `after` does, of the next changes in the store. Blocks."""
        found = self.runs.changed_since(revision)
        data = b"".join(data for _, data in self._encoded(found))
        return data, found[-1].revision if found else revision

    async def _look(self) -> bool:
        """Reads what has changed since the last look. Returns whether there is more."""
        if self.streams == 0:
            self._is_live = False
            return False
        if not self._is_live:
            await self._begin_now()
        states, found, events = await asyncio.to_thread(self._read)
        for entry in states:
            self._history_seq = entry["seq"]
            if (run := self._run_feeds.get(entry["run_id"])) is not None:
                run.add_state(entry)
        for change in found:
            if isinstance(change, DeletedRun) and change.id in self._run_feeds:
                self._run_feeds[change.id].set_deleted()
        self._keep(events, found[-1].revision if found else self._end)
        return bool(found)

    def _read(self) -> tuple[list[dict[str, Any]], Sequence[Changed], list[tuple[int, bytes]]]:
        """Returns changes of state, changed runs and alerts, and their events. Blocks."""
        found = self.runs.changed_since(self._end)
        # Read second: a state that a `run` event shows is then known, too.
        states = self.runs.history_of_all(self._history_seq) if found else []
        return states, found, self._encoded(found)

    async def _begin_now(self) -> None:
        """Starts keeping what changes from now on."""
        self._kept.clear()
        self._kept_bytes = 0
        self._history_seq = await asyncio.to_thread(self.runs.newest_history_seq)
        self._begin = self._end = await asyncio.to_thread(self.runs.newest_revision)
        present = await asyncio.to_thread(self.runs.names, list(self._run_feeds))
        self._is_live = True
        for run_id, run in self._run_feeds.items():
            run.begin_states(self._history_seq)
            if run_id not in present:
                run.set_deleted()
        self.news.wake()

    def _keep(self, events: list[tuple[int, bytes]], revision: int) -> None:
        if revision == self._end:
            return
        self._end = revision
        self._joined.clear()
        self._kept += events
        self._kept_bytes += sum(len(data) for _, data in events)
        while self._kept and self._kept_bytes > MAX_KEPT_BYTES:
            self._begin, dropped = self._kept.popleft()
            self._kept_bytes -= len(dropped)
        self.news.wake()

    def _encoded(self, found: Sequence[Changed]) -> list[tuple[int, bytes]]:
        events = []
        for change in found:
            try:
                kind, shown = self._shown(change)
                data = event(kind, shown, str(change.revision))
            except Exception as error:  # one damaged row must not silence all the others
                _log.error("change not sent", revision=change.revision, error=repr(error))
                continue
            events.append((change.revision, data))
        return events

    def _shown(self, change: Changed) -> tuple[str, dict[str, Any]]:
        if isinstance(change, DeletedRun):
            return "deleted", {"id": change.id}
        if isinstance(change, Alert):
            return "alert", alert_view(change).model_dump(mode="json")
        if isinstance(change, Task):
            return "task", task_view(change, time.time()).model_dump(mode="json")
        if not isinstance(change, Run):
            raise TypeError(f"{type(change).__name__} is no change that is sent")
        return "run", self._view(change).model_dump(mode="json")
