"""Where metrics go: files, each behind a queue and a thread, so that the loop never waits for one.

A queue that is full drops what does not fit and counts it. Before a checkpoint the loop waits until
all that it handed over is on disk (`QueuedSink.flush`): a run that resumes finds the metrics of
every step before its checkpoint.
"""

import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog

from lectern_common.errors import DiskStalled, Misconfigured
from lectern_common.run_folder import append_json_line
from student_trainer.stopping import Stop

_log = structlog.get_logger()

Metrics = Mapping[str, float | None]

_QUEUED_LINES = 100_000
# How long a disk may take before it is said, or at the end given up.
_PATIENCE_SECONDS = 30.0


class Sink(Protocol):
    """Somewhere that metrics go; called from one thread of its own."""

    def write(self, step: int, metrics: Metrics) -> None: ...

    def flush(self) -> None:
        """Makes what was written outlive this process."""
        ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, step: int, metrics: Metrics) -> None:
        append_json_line(self._path, {"step": step, **metrics})

    def flush(self) -> None:
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self.flush()


class TensorBoard:
    """tensorboard/ in the run folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Raises Misconfigured where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Misconfigured(
                "report_to: tensorboard needs the package tensorboard; install lectern[tensorboard]"
                ", or remove it from report_to"
            ) from None
        # What an earlier process wrote from this step on is hidden.
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class QueuedSink:
    """A sink behind a queue. An error of the sink ends it, and is raised by the next `put`.

    Args:
        sink: where lines go.
        limit: lines that wait at most; further ones are dropped and counted.
        wait: returns whether the event is set within so many seconds.
    """

    def __init__(
        self,
        sink: Sink,
        limit: int = _QUEUED_LINES,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._sink = sink
        self._limit = limit
        self._wait = wait
        self._queue: queue.SimpleQueue[tuple[int, Metrics] | threading.Event | None] = (
            queue.SimpleQueue()
        )
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._taken = self._written = 0  # lines
        self.dropped = 0
        name = f"write-{type(sink).__name__}"
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def put(self, step: int, metrics: Metrics) -> None:
        """Hands one line over, or counts it as dropped. Raises what an earlier write raised."""
        self.raise_error()
        if self._queue.qsize() < self._limit:
            self._queue.put((step, metrics))
            self._taken += 1
        else:
            self.dropped += 1

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def flush(self, stop: Stop) -> None:
        """Returns when everything handed over is written, however long that takes; says so.

        Raises:
            DiskStalled: a stop is requested, and half a minute was not enough.
        """
        written = threading.Event()
        self._queue.put(written)
        seconds = 0.0
        while not self._wait(written, _PATIENCE_SECONDS):
            seconds += _PATIENCE_SECONDS
            what = type(self._sink).__name__
            _log.warning("disk_stalled", sink=what, seconds=seconds, lines=self._left)
            if stop.requested:
                raise DiskStalled(
                    f"{what} took no line for {seconds:g} s, so no checkpoint was written either; "
                    "see to the disk, then resume the run from its last checkpoint"
                )

    def close(self) -> None:
        """Returns when everything is written, or after half a minute: what is left is dropped."""
        self._queue.put(None)
        if self._wait(self._closed, _PATIENCE_SECONDS):
            self._thread.join()
        else:
            self.dropped += self._left
            _log.error("disk_stalled", sink=type(self._sink).__name__, lines_lost=self._left)

    @property
    def _left(self) -> int:
        return self._taken - self._written

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                if isinstance(entry, threading.Event):
                    self._sink.flush()
                elif self._error is None:
                    self._sink.write(*entry)
            except Exception as error:  # told to the loop, whatever it is
                self._error = error
            if isinstance(entry, threading.Event):
                entry.set()
            else:
                self._written += 1
        try:
            self._sink.close()
        except OSError as error:
            _log.warning("sink_not_closed", sink=type(self._sink).__name__, error=str(error))
        finally:
            self._closed.set()
