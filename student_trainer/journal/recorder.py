"""Records a run's status, events and metrics while it trains, without making the loop wait.

status.json     rewritten every second by its own thread, and at every change of state
events.jsonl    state changes, checkpoints, warnings; few, written immediately
metrics.jsonl   one line per step; through a queue and a thread
tensorboard/    the same numbers, if report_to asks for it; through a second queue
wandb/          and to Weights & Biases; through a third, which may fail without ending the run

Times are wall-clock times, for people, and may jump. Durations are measured with monotonic clocks
(loop.py), and metrics are ordered by step.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lectern_common.errors import CorruptData
from lectern_common.json_lines import finite_record, keep_lines_before
from lectern_common.logs import get_logger
from lectern_common.run.folder import ForkedFrom, RunFolder
from lectern_common.run.processes import identity_of
from lectern_common.run.status import (
    BEST_VALIDATION,
    BEST_VALIDATION_STEP,
    HEARTBEAT_SECONDS,
    STOP_AT_CHECKPOINT,
    STOP_AT_END,
    VALIDATION_LOSS,
    VALIDATION_STEP,
    RunState,
    Status,
    attempt_of_environment,
    bounded,
)
from lectern_common.spec.evaluation import OF_HARNESS
from student_trainer.journal.activity import CHECKPOINT, STEP, Activity
from student_trainer.journal.disk_full import Reserve, disk_full_as_error
from student_trainer.journal.sinks import (
    Metrics,
    MetricsFile,
    QueuedSink,
    Sink,
    TensorBoard,
    WeightsAndBiases,
)
from student_trainer.stop import Stop

_log = get_logger()

# Steps over which tokens_per_second and teacher_wait_share are averaged.
_RECENT_STEPS = 20
# How the names of metrics begin that an evaluation measures.
_EVALUATED = (VALIDATION_LOSS, "val/", "code/", OF_HARNESS)


@dataclass
class _Current:
    """The changing part of a Status; guarded by the recorder's lock."""

    state: RunState = RunState.STARTING
    since: float = 0.0
    reason: str | None = None
    message: str | None = None
    step: int = 0
    steps: int = 0
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    device: str | None = None
    teacher_away: str | None = None


class Recorder:
    """Writes a run's folder. Use as a context manager; leaving it writes the last status.

    Args:
        folder: of the run; this process holds its lock.
        stop: once requested, a running run is `stopping`; a request for the next checkpoint shows
            in `stops_at`.
        known_by: the pid by which others watch and stop the run; None means this process.
        heartbeat_seconds: time between two writes of status.json.
        clock: returns Unix seconds.
        monotonic: returns seconds that never go back, to tell how long nothing has progressed.
    """

    def __init__(
        self,
        folder: RunFolder,
        stop: Stop,
        known_by: int | None = None,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._stop = stop
        self._heartbeat_seconds = heartbeat_seconds
        self._pid = known_by or os.getpid()
        self._identity = identity_of(self._pid)
        self._attempt = attempt_of_environment()
        self._current = _Current()
        self._activity = Activity(monotonic)
        self._published: RunState | None = None
        self._latest: dict[str, float | None] = {}
        self._recent: deque[tuple[float, float, float | None]] = deque(maxlen=_RECENT_STEPS)
        self._lock = threading.Lock()
        # Held while a status is written, to keep the order; the loop only waits for `_lock`.
        self._writing = threading.Lock()
        self._reserve = Reserve(folder.path / ".reserve")
        self._sinks: list[QueuedSink] = []
        self._dropped_reported = 0
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
        self._report_dropped(more_than=self._dropped_reported)
        self._reserve.give_up()

    def open_metrics(self, report_to: Sequence[str], first_step: int) -> None:
        """Starts metrics at `first_step`; removes lines of that and later steps.

        Raises:
            DiskFull: no space to rewrite the file, which is unchanged.
            Misconfigured: a package that report_to needs is not installed.
        """
        path = self._folder.metrics_path
        with disk_full_as_error(path.name):
            keep_lines_before(path, first_step)
        sinks: list[Sink] = [MetricsFile(path)]
        if "tensorboard" in report_to:
            sinks.append(TensorBoard(self._folder.path / "tensorboard", first_step))
        self._sinks = [QueuedSink(sink) for sink in sinks]
        if "wandb" in report_to:
            # A remote service may block forever: neither the run nor a checkpoint waits for it.
            spec = self._folder.read_spec().model_dump(mode="json")
            report = WeightsAndBiases(self._folder.path, self._folder.run_id, spec)
            self._sinks.append(QueuedSink(report, may_fail=True))

    def set_state(
        self, state: RunState, reason: str | None = None, message: str | None = None
    ) -> None:
        """Sets and writes a new state."""
        with self._lock:
            current = self._current
            current.state, current.reason, current.message = state, reason, message
            if state is RunState.RUNNING:
                self._activity.begin(STEP)
        self._publish()

    def set_progress(
        self,
        *,
        step: int | None = None,
        steps: int | None = None,
        checkpoint_step: int | None = None,
        device: str | None = None,
    ) -> None:
        """Sets values of the next status; None leaves a value unchanged."""
        with self._lock:
            current = self._current
            current.step = current.step if step is None else step
            current.steps = current.steps if steps is None else steps
            current.device = device or current.device
            if checkpoint_step is not None and checkpoint_step != current.checkpoint_step:
                current.checkpoint_step = checkpoint_step
                current.checkpoint_at = self._folder.checkpoint_time(checkpoint_step)

    def go_on_from(self, status: Status | None) -> None:
        """Takes over the progress in another process's last status."""
        if status is not None:
            with self._lock:
                self._current.step, self._current.steps = status.step, status.steps
                self._current.checkpoint_step, self._current.device = (
                    status.checkpoint_step,
                    status.device,
                )
                self._current.checkpoint_at = status.checkpoint_at
                self._latest = dict(status.latest)

    def start_again_from(
        self, checkpoint_step: int | None, why: str | None, forked: ForkedFrom | None = None
    ) -> None:
        """Makes the first status of a resumed run show its newest checkpoint.

        What the process before it measured last on the validation rows, up to that checkpoint, is
        still shown.

        Args:
            checkpoint_step: None without a checkpoint.
            why: why the supervisor restarted the ranks; None means the resume was requested.
            forked: the checkpoint of another run that this one began with, if it was forked.
        """
        measured = self._measured_before(checkpoint_step)
        with self._lock:
            self._latest |= measured
            current = self._current
            current.step, current.checkpoint_step = checkpoint_step or 0, checkpoint_step
            if checkpoint_step is not None:
                current.checkpoint_at = self._folder.checkpoint_time(checkpoint_step)
            current.reason = None if why is None else "rank_lost"
            current.message = f"restarting from step {current.step}" + (f": {why}" if why else "")
            if why is None and forked is not None and forked.step == checkpoint_step:
                current.message = f"starting from the checkpoint of {forked}"

    def _measured_before(self, checkpoint_step: int | None) -> dict[str, float | None]:
        """Returns the last evaluation's metrics, unless it followed the checkpoint."""
        try:
            status = self._folder.read_status()
        except CorruptData:  # the next status replaces it
            status = None
        latest = {} if status is None else status.latest
        at = latest.get(VALIDATION_STEP)
        if at is None or checkpoint_step is None or at > checkpoint_step:
            return {}
        return {key: value for key, value in latest.items() if key.startswith(_EVALUATED)}

    def go_on_with_best(self, loss: float | None, step: int | None) -> None:
        """Takes over the lowest validation loss before this process, and its step."""
        if loss is not None and step is not None:
            with self._lock:
                self._latest |= {BEST_VALIDATION: loss, BEST_VALIDATION_STEP: step}

    def no_checkpoint(self) -> None:
        """Clears the checkpoint in the status: none is intact."""
        with self._lock:
            self._current.checkpoint_step = self._current.checkpoint_at = None

    def teacher_away(self, message: str | None) -> None:
        """Reports that the teacher cannot be reached, or (None) that it is back. Thread-safe."""
        with self._lock:
            self._current.teacher_away = message
            self._activity.progressed()  # the outage is no lack of progress
        self._publish()

    def doing(self, activity: str) -> None:
        """Reports what the loop does until it records the next step or checkpoint."""
        with self._lock:
            self._activity.begin(activity)

    def event(self, kind: str, **details: Any) -> None:
        """Appends one event. Raises DiskFull."""
        _log.info(kind, **details)
        with disk_full_as_error("events.jsonl"):
            self._folder.append_event(kind, **details)

    def record(self, step: int, metrics: Metrics) -> None:
        """Records the complete metrics of a step; never waits.

        Raises:
            DiskFull: an earlier line could not be written.
        """
        dropped = self._report_dropped(more_than=10 * self._dropped_reported)
        if dropped:
            metrics = {**metrics, "telemetry/dropped_lines": dropped}
        with self._lock:
            self._current.step = step
            self._latest.update(finite_record(dict(metrics)))
            self._latest.pop("non_finite", None)
            self._activity.begin(STEP)
            self._note_validation(step, metrics.get(VALIDATION_LOSS))
            if "time/step_seconds" in metrics:
                self._recent.append(_pace(metrics))
                self._activity.took(STEP, self._recent[-1][1])
        for sink in self._sinks:
            with disk_full_as_error("metrics"):
                sink.put(step, metrics)

    def before_checkpoint(self) -> None:
        """Waits until all metrics recorded so far are on disk, however long that takes.

        Raises:
            DiskFull: a line could not be written, or is still not written once a stop is requested.
        """
        self.doing(CHECKPOINT)
        for sink in self._sinks:
            sink.flush(self._stop)
            with disk_full_as_error("metrics"):
                sink.raise_error()

    def after_checkpoint(self, step: int) -> None:
        """Sets the newest checkpoint, and the number of finished steps to its step."""
        self.set_progress(step=step, checkpoint_step=step)
        with self._lock:
            self._current.checkpoint_at = self._clock()
        self.doing(STEP)

    def _note_validation(self, step: int, value: float | None) -> None:
        """Keeps in `latest` at which step the validation loss was measured, and the lowest one."""
        if value is None or not math.isfinite(value):
            return
        self._latest[VALIDATION_STEP] = step
        best = self._latest.get(BEST_VALIDATION)
        if best is None or value < best:
            self._latest |= {BEST_VALIDATION: value, BEST_VALIDATION_STEP: step}

    def _report_dropped(self, more_than: int) -> int:
        """Returns how many lines were dropped; writes an event if they exceed `more_than`."""
        dropped = {sink.name: sink.dropped for sink in self._sinks if sink.dropped}
        lines = sum(dropped.values())
        if lines > more_than:
            self._dropped_reported = lines
            problems = [sink.problem for sink in self._sinks if sink.problem]
            self.event("metrics_dropped", lines=lines, by=dropped, message="; ".join(problems))
        return lines

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_seconds):
            self._publish()

    def _publish(self) -> None:
        """Writes status.json, and an event if the state has changed. Never raises OSError."""
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
        """Returns the next status, and whether its state differs from the last one written."""
        current, now = self._current, self._clock()
        state, message = self._visible()
        changed = state is not self._published
        if changed:
            current.since, self._published = now, state
        # If the clock has jumped back, the state is as old as the new time.
        current.since = min(current.since, now)
        seconds = sum(pace[1] for pace in self._recent)
        status = Status(
            run_id=self._folder.run_id,
            state=state,
            since=current.since,
            heartbeat=now,
            pid=self._pid,
            boot_id=None if self._identity is None else self._identity.boot_id,
            start_ticks=None if self._identity is None else self._identity.start_ticks,
            attempt=self._attempt,
            reason=current.reason,
            message=message,
            step=current.step,
            steps=current.steps,
            checkpoint_step=current.checkpoint_step,
            checkpoint_at=current.checkpoint_at,
            device=current.device,
            tokens_per_second=sum(p[0] for p in self._recent) / seconds if seconds else None,
            seconds_per_step=seconds / len(self._recent) if seconds else None,
            teacher_wait_share=_share_waited(self._recent),
            latest=dict(self._latest),
            activity=self._activity.name,
            activity_seconds=self._activity.seconds,
            usual_seconds=self._activity.usual_seconds,
            stops_at=STOP_AT_CHECKPOINT if self._stop.at_checkpoint else STOP_AT_END,
        )
        return bounded(status), changed

    def _visible(self) -> tuple[RunState, str | None]:
        """Returns the state to show, with its message."""
        current = self._current
        if current.state in (RunState.STARTING, RunState.RUNNING):
            if self._stop.requested:
                return RunState.STOPPING, current.message
            if current.teacher_away is not None:
                return RunState.WAITING_FOR_TEACHER, current.teacher_away
        return current.state, current.message


def _pace(metrics: Metrics) -> tuple[float, float, float | None]:
    """Returns (tokens, seconds, seconds spent waiting for the teacher) of a step.

    The last is None in a run without a teacher.
    """
    seconds = metrics["time/step_seconds"] or 0.0
    tokens = (metrics.get("perf/tokens_per_second") or 0.0) * seconds
    waited = metrics.get("time/teacher_wait_seconds") or 0.0
    has_teacher = waited > 0 or "time/teacher_wait_share" in metrics
    return tokens, seconds, waited if has_teacher else None


def _share_waited(paces: Collection[tuple[float, float, float | None]]) -> float | None:
    """Returns the share of the steps' time spent waiting; None without a teacher or steps."""
    waited = [(pace[2], pace[1]) for pace in paces if pace[2] is not None]
    seconds = sum(step for _, step in waited)
    return sum(wait for wait, _ in waited) / seconds if seconds else None


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

    def go_on_with_best(self, loss: float | None, step: int | None) -> None: ...

    def no_checkpoint(self) -> None: ...

    def teacher_away(self, message: str | None) -> None:
        if message is not None:
            _log.warning("teacher_away", message=message)

    def doing(self, activity: str) -> None: ...

    def event(self, kind: str, **details: Any) -> None: ...

    def record(self, step: int, metrics: Metrics) -> None: ...

    def before_checkpoint(self) -> None: ...

    def after_checkpoint(self, step: int) -> None: ...


RunRecorder = Recorder | QuietRecorder
