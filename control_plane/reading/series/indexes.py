"""The indexes of all runs: made when a chart asks, and kept up with long runs before it does."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial

from control_plane.reading.series.index import Index, Indexed
from lectern_common.run.folder import RunFolder

# Indexes that charts asked for stay in memory: up to this many bytes, but always the last one.
MAX_BYTES_IN_MEMORY = 64 << 20
# So much of an active run's metrics, or of another's, may be left to index when a chart asks.
ACTIVE_BEHIND_BYTES = 1 << 20
RESTING_BEHIND_BYTES = 32 << 20
# Between two chunks of work that no one waits for, so that requests are not slowed down.
PAUSE_SECONDS = 0.05


class Indexes:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Index] = OrderedDict()  # by run, the least used first
        self._asked: set[str] = set()  # runs of which a chart was asked for
        self._indexed: dict[str, int] = {}  # bytes, by run
        self._closed = threading.Event()

    def of(self, folder: RunFolder) -> Indexed:
        """Returns what a run's metrics say now."""
        index = self._index(folder, asked=True)
        indexed = index.up_to_date(lambda: not self._closed.is_set())
        self._used(folder, index)
        return indexed

    def catch_up(self, folders: Iterable[RunFolder], behind_bytes: int) -> None:
        """Indexes those metrics of which more than `behind_bytes` are not; slowly."""
        for folder in folders:
            try:
                size = folder.metrics_path.stat().st_size
            except OSError:
                continue
            if self._closed.is_set():
                return
            if size - self._indexed.get(folder.run_id, 0) > behind_bytes:
                index = self._index(folder, asked=False)
                index.up_to_date(partial(self._goes_on, index))
                self._used(folder, index)

    def close(self) -> None:
        """Ends a `catch_up` soon."""
        self._closed.set()

    def _goes_on(self, index: Index) -> bool:
        """Pauses unless a request waits for the index; returns False once this is closed."""
        return not self._closed.wait(0 if index.waiting else PAUSE_SECONDS)

    def _index(self, folder: RunFolder, *, asked: bool) -> Index:
        with self._lock:
            index = self._open.get(folder.run_id)
            if index is None:
                index = Index(folder.metrics_path, folder.metrics_index_path)
                self._open[folder.run_id] = index
            if asked:
                self._asked.add(folder.run_id)
                self._open.move_to_end(folder.run_id)
            return index

    def _used(self, folder: RunFolder, index: Index) -> None:
        """Notes how far the index is; forgets it unless asked for, and others beyond the limit."""
        with self._lock:
            self._indexed[folder.run_id] = index.indexed_bytes
            if folder.run_id not in self._asked and not index.in_memory:
                self._open.pop(folder.run_id, None)
            taken = sum(index.num_bytes for index in self._open.values())
            while len(self._open) > 1 and taken > MAX_BYTES_IN_MEMORY:
                run_id, forgotten = self._open.popitem(last=False)
                self._asked.discard(run_id)
                taken -= forgotten.num_bytes
