"""Sinks for metrics: files and services, each behind its own queue and thread.

The loop never waits for a sink: a full queue drops lines and counts them. Only before a checkpoint
does it wait until every line is on disk (`QueuedSink.flush`), so that a resumed run finds the
metrics of every step before its checkpoint.
"""

import os
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lectern_common.errors import DiskStalled, Misconfigured
from lectern_common.files import fsync
from lectern_common.json_lines import append_json_line
from lectern_common.logs import get_logger
from student_trainer.stop import Stop

_log = get_logger()

Metrics = Mapping[str, float | None]

_QUEUED_LINES = 100_000
# How long a disk may take before a warning, or, on closing, before lines are given up.
_PATIENCE_SECONDS = 30.0
_SHORT_PATIENCE_SECONDS = 10.0


class Sink(Protocol):
    """A destination for metrics; called only from its own thread."""

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
            fsync(self._path)

    def close(self) -> None:
        self.flush()


class TensorBoard:
    """tensorboard/ in the run folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Raises Misconfigured if TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise Misconfigured(
                "report_to: tensorboard needs the package tensorboard; install lectern[tensorboard]"
                ", or remove it from report_to"
            ) from None
        # Hides what an earlier process wrote from this step on.
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "time":
                self._writer.add_scalar(name, value, step, walltime=metrics.get("time"))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class QueuedSink:
    """A sink behind a queue. An error of the sink ends it, and is raised by the next `put`.

    Args:
        sink: where lines go.
        limit: most lines that may wait; further ones are dropped and counted.
        wait: waits up to so many seconds for the event, and returns whether it is set.
        may_fail: for remote services: an error is only logged, further lines count as dropped, and
            `flush` does not wait.
    """

    def __init__(
        self,
        sink: Sink,
        limit: int = _QUEUED_LINES,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
        *,
        may_fail: bool = False,
    ) -> None:
        self._sink = sink
        self._may_fail = may_fail
        self.name = type(sink).__name__
        self._limit = limit
        self._wait = wait
        self._queue: queue.SimpleQueue[tuple[int, Metrics] | threading.Event | None] = (
            queue.SimpleQueue()
        )
        self._closed = threading.Event()
        self._error: Exception | None = None
        self._taken = self._written = 0  # lines
        self._refused = 0  # lines; written by the loop's thread
        self._lost = 0  # lines; written by the sink's thread
        name = f"write-{self.name}"
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def put(self, step: int, metrics: Metrics) -> None:
        """Queues one line, or counts it as dropped. Raises the error of an earlier write."""
        self.raise_error()
        if self._queue.qsize() < self._limit:
            self._queue.put((step, metrics))
            self._taken += 1
        else:
            self._refused += 1

    @property
    def dropped(self) -> int:
        """Lines that will not be written."""
        return self._refused + self._lost

    @property
    def problem(self) -> str | None:
        """The error that ended the sink; None means it still writes."""
        return None if self._error is None else f"{type(self._error).__name__}: {self._error}"

    def raise_error(self) -> None:
        if self._error is not None and not self._may_fail:
            raise self._error

    def flush(self, stop: Stop) -> None:
        """Waits until every queued line is written, however long that takes; warns if it stalls.

        Raises:
            DiskStalled: a stop was requested, and half a minute was not enough.
        """
        if self._may_fail:
            return
        written = threading.Event()
        self._queue.put(written)
        seconds = 0.0
        while not self._wait(written, _PATIENCE_SECONDS):
            seconds += _PATIENCE_SECONDS
            _log.warning("disk_stalled", sink=self.name, seconds=seconds, lines=self._left)
            if stop.requested:
                raise DiskStalled(
                    f"{self.name} could not finish writing for {seconds:g} s, so no checkpoint was "
                    "written either; check the disk, then resume the run from its last checkpoint"
                )

    def close(self) -> None:
        """Waits until everything is written; drops what is left after half a minute.

        A sink that may fail gets only ten seconds: a stop must not take long.
        """
        self._queue.put(None)
        patience = _SHORT_PATIENCE_SECONDS if self._may_fail else _PATIENCE_SECONDS
        if self._wait(self._closed, patience):
            self._thread.join()
        else:
            self._refused += self._left
            _log.error("disk_stalled", sink=self.name, lines_lost=self._left)

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
                else:
                    self._lost += 1
            except Exception as error:  # any error is passed on to the loop
                self._error = error
                self._lost += isinstance(entry, tuple)
                _log.error("sink_failed", sink=self.name, error=self.problem)
            if isinstance(entry, threading.Event):
                entry.set()
            else:
                self._written += 1
        try:
            self._sink.close()
        except Exception as error:
            if not self._may_fail and not isinstance(error, OSError):
                raise
            _log.warning("sink_not_closed", sink=self.name, error=str(error))
        finally:
            self._closed.set()


class WeightsAndBiases:
    """A Weights & Biases run with the run's own id, so that a resumed run continues it.

    Weights & Biases ignores steps that it already has, which a resumed run may repeat. The API key
    comes only from the environment; with WANDB_MODE=offline lines stay in wandb/ for `wandb sync`.

    Args:
        folder: of the run; lines are kept in its folder wandb/.
        run_id: of the run.
        config: the resolved spec, shown beside the curves.
        init: creates the run there, like wandb.init. Called with the first line, in the sink's
            thread, because it waits for the network.

    Raises:
        Misconfigured: the package is not installed, or there is no key.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        config: Mapping[str, Any],
        init: Callable[..., Any] | None = None,
    ) -> None:
        self._init = init or _wandb_init()
        self._settings: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT") or "lectern",
            "id": run_id,
            "name": run_id,
            "dir": str(folder),
            "config": dict(config),
            "resume": "allow",
        }
        self._run: Any = None

    def write(self, step: int, metrics: Metrics) -> None:
        if self._run is None:
            self._run = self._init(**self._settings)
        numbers = {
            "_timestamp" if name == "time" else name: value  # W&B's own name for a line's time
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        self._run.log(numbers, step=step)

    def flush(self) -> None: ...

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _wandb_init() -> Callable[..., Any]:
    try:
        import wandb
    except ImportError:
        raise Misconfigured(
            "report_to: wandb needs the package wandb; install lectern[wandb], or remove it from "
            "report_to"
        ) from None
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode in ("online", "shared") and not os.environ.get("WANDB_API_KEY"):
        raise Misconfigured(
            "report_to: wandb needs WANDB_API_KEY in the trainer's environment; set it, or "
            "WANDB_MODE=offline, or remove wandb from report_to"
        )
    # Everything else stays here: console, code, packages, the machine's figures and name.
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="lectern",
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return partial(wandb.init, settings=settings)
