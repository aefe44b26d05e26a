"""What a run says of itself while it trains: status, events, metrics. The loop never waits for it.

status.json     rewritten every second by a thread of its own, and at every change of state
events.jsonl    state changes, checkpoints, warnings; few, written at once
metrics.jsonl   one line a step; through a queue and a thread
tensorboard/    the same numbers, where report_to asks for it; through another
wandb/          and to Weights & Biases; through a third, which may fail without ending the run

Times are of the wall clock, for people. It may jump: durations are measured by clocks that never go
back (loop.py), and metrics are ordered by their steps.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import structlog

from lectern_common.json_lines import finite_record, keep_lines_before
from lectern_common.run_folder import HEARTBEAT_SECONDS, RunFolder, RunState, Status
from student_trainer.disk_full import Reserve, disk_full_as_error
from student_trainer.journal.sinks import (
    Metrics,
    MetricsFile,
    QueuedSink,
    Sink,
    TensorBoard,
    WeightsAndBiases,
)
from student_trainer.stop import Stop

_log = structlog.get_logger()

# Steps that tokens_per_second and teacher_wait_share are taken over.
_RECENT_STEPS = 20


@dataclass
class _Said:
    """The part of a Status that changes; guarded by the recorder's lock."""

    state: RunState = RunState.STARTING
    since: float = 0.0
    reason: str | None = None
    message: str | None = None
    step: int = 0
    steps: int = 0
    checkpoint_step: int | None = None
    device: str | None = None
    teacher_away: str | None = None


class Recorder:
    """Writes a run's folder. Use as a context manager; leaving it writes the last status.

    Args:
        folder: of the run; this process holds its lock.
        stop: once requested, a running run is `stopping`.
        known_by: pid by which others know, watch and stop the run; None: this process's.
        heartbeat_seconds: time between two writes of status.json.
        clock: Unix seconds.
    """

    def __init__(
        self,
        folder: RunFolder,
        stop: Stop,
        known_by: int | None = None,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._stop = stop
        self._heartbeat_seconds = heartbeat_seconds
        self._pid = known_by or os.getpid()
        self._create_time = psutil.Process(self._pid).create_time()
        self._said = _Said()
        self._published: RunState | None = None
        self._latest: dict[str, float | None] = {}
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=_RECENT_STEPS)
        self._lock = threading.Lock()
        # Held while a status is written, in order; the loop waits for the other one alone.
        self._writing = threading.Lock()
        self._reserve = Reserve(folder.path / ".reserve")
        self._sinks: list[QueuedSink] = []
        self._dropped_said = 0
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True, name="heartbeat")

    def __enter__(self) -> "Recorder":
        self._reserve.take()
        self._publish()
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        for sink in self._sinks:
            sink.close()
        self._publish()
        self._say_dropped(more_than=self._dropped_said)
        self._reserve.give_up()

    def open_metrics(self, report_to: Sequence[str], first_step: int) -> None:
        """Begins metrics at `first_step`: lines of it and later ones are cut off.

        Raises:
            DiskFull: no space to cut lines off; they are as they were.
            Misconfigured: a further place is not installed.
        """
        path = self._folder.metrics_path
        with disk_full_as_error(path.name):
            keep_lines_before(path, first_step)
        sinks: list[Sink] = [MetricsFile(path)]
        if "tensorboard" in report_to:
            sinks.append(TensorBoard(self._folder.path / "tensorboard", first_step))
        self._sinks = [QueuedSink(sink) for sink in sinks]
        if "wandb" in report_to:
            # Others may keep it waiting for ever: neither the run nor a checkpoint waits for it.
            spec = self._folder.read_spec().model_dump(mode="json")
            report = WeightsAndBiases(self._folder.path, self._folder.run_id, spec)
            self._sinks.append(QueuedSink(report, may_fail=True))

    def set_state(
        self, state: RunState, reason: str | None = None, message: str | None = None
    ) -> None:
        """Says a new state, at once."""
        with self._lock:
            self._said.state, self._said.reason, self._said.message = state, reason, message
        self._publish()

    def set_progress(
        self,
        *,
        step: int | None = None,
        steps: int | None = None,
        checkpoint_step: int | None = None,
        device: str | None = None,
    ) -> None:
        """Sets what the next status says; None leaves a value as it is."""
        with self._lock:
            said = self._said
            said.step = said.step if step is None else step
            said.steps = said.steps if steps is None else steps
            said.device = device or said.device
            if checkpoint_step is not None:
                said.checkpoint_step = checkpoint_step

    def go_on_from(self, status: Status | None) -> None:
        """Keeps what another process last said of the run's progress."""
        if status is not None:
            with self._lock:
                self._said.step, self._said.steps = status.step, status.steps
                self._said.checkpoint_step, self._said.device = (
                    status.checkpoint_step,
                    status.device,
                )
                self._latest = dict(status.latest)

    def start_again_from(self, checkpoint_step: int | None, why: str | None) -> None:
        """Has a resumed run stand at its newest checkpoint from the first status on.

        Args:
            checkpoint_step: None without a checkpoint.
            why: processes were started again that nobody had stopped; None: on request.
        """
        with self._lock:
            said = self._said
            said.step, said.checkpoint_step = checkpoint_step or 0, checkpoint_step
            said.reason = None if why is None else "rank_lost"
            said.message = f"starting again from step {said.step}" + (f": {why}" if why else "")

    def no_checkpoint(self) -> None:
        """Takes back that there is one: none of them is intact."""
        with self._lock:
            self._said.checkpoint_step = None

    def teacher_away(self, message: str | None) -> None:
        """Says that the teacher cannot be reached, or (None) that it is back. Any thread."""
        with self._lock:
            self._said.teacher_away = message
        self._publish()

    def event(self, kind: str, **details: Any) -> None:
        """Appends one event. Raises DiskFull."""
        _log.info(kind, **details)
        with disk_full_as_error("events.jsonl"):
            self._folder.append_event(kind, **details)

    def record(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step, complete; never waits.

        Raises:
            DiskFull: an earlier line could not be written.
        """
        dropped = self._say_dropped(more_than=10 * self._dropped_said)
        if dropped:
            metrics = {**metrics, "telemetry/dropped_lines": dropped}
        with self._lock:
            self._said.step = step
            self._latest.update(finite_record(dict(metrics)))
            self._latest.pop("non_finite", None)
            if "time/step_seconds" in metrics:
                self._recent.append(_pace(metrics))
        for sink in self._sinks:
            with disk_full_as_error("metrics"):
                sink.put(step, metrics)

    def before_checkpoint(self) -> None:
        """Returns when the metrics handed over so far are on disk, however long that takes.

        Raises:
            DiskFull: one could not be written, or is not while a stop is requested.
        """
        for sink in self._sinks:
            sink.flush(self._stop)
            with disk_full_as_error("metrics"):
                sink.raise_error()

    def after_checkpoint(self, step: int) -> None:
        """Says which checkpoint is the newest; as many steps are finished, recorded or not yet."""
        self.set_progress(step=step, checkpoint_step=step)

    def _say_dropped(self, more_than: int) -> int:
        """Returns how many lines were dropped; an event says so where they are more than that."""
        dropped = {sink.name: sink.dropped for sink in self._sinks if sink.dropped}
        lines = sum(dropped.values())
        if lines > more_than:
            self._dropped_said = lines
            problems = [sink.problem for sink in self._sinks if sink.problem]
            self.event("metrics_dropped", lines=lines, by=dropped, message="; ".join(problems))
        return lines

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_seconds):
            self._publish()

    def _publish(self) -> None:
        """Writes status.json, and an event where the state has changed. Never raises OSError."""
        with self._writing:
            with self._lock:
                status, changed = self._next_status()
            try:
                if changed:
                    self._reserve.spent_on(lambda: self._folder.write_status(status))
                    self._reserve.spent_on(
                        lambda: self._folder.append_event(
                            "state",
                            state=str(status.state),
                            reason=status.reason,
                            message=status.message,
                        )
                    )
                else:
                    self._folder.write_status(status)
            except OSError as error:  # a full disk must not end the heartbeat
                _log.error("status_not_written", error=str(error))

    def _next_status(self) -> tuple[Status, bool]:
        """Returns what is to be said now, and whether the state is another than was said last."""
        said, now = self._said, self._clock()
        state, message = self._visible()
        changed = state is not self._published
        if changed:
            said.since, self._published = now, state
        # Where the clock has jumped back the state is as old as that.
        said.since = min(said.since, now)
        seconds = sum(pace[1] for pace in self._recent)
        status = Status(
            run_id=self._folder.run_id,
            state=state,
            since=said.since,
            heartbeat=now,
            pid=self._pid,
            process_create_time=self._create_time,
            reason=said.reason,
            message=message,
            step=said.step,
            steps=said.steps,
            checkpoint_step=said.checkpoint_step,
            device=said.device,
            tokens_per_second=sum(p[0] for p in self._recent) / seconds if seconds else None,
            teacher_wait_share=sum(p[2] for p in self._recent) / seconds if seconds else None,
            latest=dict(self._latest),
        )
        return status, changed

    def _visible(self) -> tuple[RunState, str | None]:
        """Returns the state as others see it, with its message."""
        said = self._said
        if said.state in (RunState.STARTING, RunState.RUNNING):
            if self._stop.requested:
                return RunState.STOPPING, said.message
            if said.teacher_away is not None:
                return RunState.WAITING_FOR_TEACHER, said.teacher_away
        return said.state, said.message


def _pace(metrics: Metrics) -> tuple[float, float, float]:
    """Returns (tokens, seconds, seconds waited) of a step."""
    seconds = metrics["time/step_seconds"] or 0.0
    tokens = (metrics.get("perf/tokens_per_second") or 0.0) * seconds
    return tokens, seconds, metrics.get("time/teacher_wait_seconds") or 0.0


class QuietRecorder:
    """A recorder that writes nothing, for ranks above 0; only rank 0 writes the run folder."""

    def __enter__(self) -> "QuietRecorder":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def open_metrics(self, report_to: Sequence[str], first_step: int) -> None: ...

    def set_state(
        self, state: RunState, reason: str | None = None, message: str | None = None
    ) -> None: ...

    def set_progress(self, **progress: Any) -> None: ...

    def no_checkpoint(self) -> None: ...

    def teacher_away(self, message: str | None) -> None:
        if message is not None:
            _log.warning("teacher_away", message=message)

    def event(self, kind: str, **details: Any) -> None: ...

    def record(self, step: int, metrics: Metrics) -> None: ...

    def before_checkpoint(self) -> None: ...

    def after_checkpoint(self, step: int) -> None: ...


RunRecorder = Recorder | QuietRecorder
