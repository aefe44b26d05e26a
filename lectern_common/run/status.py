"""The status that a trainer writes of its run: states, fields, and reading it without belief."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lectern_common.errors import CorruptData, Misconfigured
from lectern_common.run.processes import Identity
from lectern_common.run.untrusted import (
    Count,
    Number,
    Pid,
    Text,
    UnixSeconds,
    Whole,
    Word,
    cut,
    finite,
    json_of,
    parse_versioned,
    read_at_most,
)
from lectern_common.words import inert_name

_Said = TypeVar("_Said")

STATUS_VERSION = 2
_READ_VERSIONS = (1, 2)
MAX_STATUS_BYTES = 1 << 20
MAX_LATEST = 256  # metrics in a status
# The environment variable by which the control plane tells a trainer which attempt it is.
ATTEMPT_VARIABLE = "LECTERN_ATTEMPT"
HEARTBEAT_SECONDS = 1.0
_PATIENCE_SECONDS, _LONG_PATIENCE_SECONDS, _FIRST_PATIENCE_SECONDS = 60.0, 600.0, 1800.0
# In a status's `latest`: the last validation loss and its step, the lowest one and its step.
VALIDATION_LOSS = "loss/val"
VALIDATION_STEP = "loss/val_step"
BEST_VALIDATION = "loss/val_best"
BEST_VALIDATION_STEP = "loss/val_best_step"
# In a status's `stops_at`: where the trainer will stop, as far as it knows.
STOP_AT_END = "end"
STOP_AT_CHECKPOINT = "checkpoint"
EARLY_STOPPED = "early_stopped"  # reason of a run that succeeded before its last step


class RunState(StrEnum):
    """The state of a run. The last four are at rest; `interrupted` can be resumed unchanged."""

    QUEUED = "queued"  # accepted; waits for a free device
    STARTING = "starting"  # process started; first step not yet begun
    RUNNING = "running"  # makes steps
    WAITING_FOR_TEACHER = "waiting_for_teacher"  # teacher unreachable, within the outage budget
    STOPPING = "stopping"  # asked to stop; writes a checkpoint
    STOPPED = "stopped"  # stopped on request; can be resumed
    SUCCEEDED = "succeeded"  # all steps made, or stopped early by its patience; exported
    FAILED = "failed"  # needs a change before it can go on
    INTERRUPTED = "interrupted"  # ended through no fault of the run; can be resumed unchanged


RESTING = frozenset({RunState.STOPPED, RunState.SUCCEEDED, RunState.FAILED, RunState.INTERRUPTED})
# Can be resumed; a succeeded run only if its new spec asks for further steps.
RESUMABLE = frozenset({RunState.STOPPED, RunState.INTERRUPTED, RunState.FAILED})


@dataclass(frozen=True)
class Status:
    """The trainer's last report. Times are Unix seconds; step counts finished steps.

    A process is known by pid, boot id and start ticks (processes.py). Version 1 had its create time
    by the wall clock instead, and no attempt.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True)

    run_id: Text
    state: RunState
    since: UnixSeconds
    heartbeat: UnixSeconds
    pid: Pid
    process_create_time: UnixSeconds | None = None  # only in version 1
    reason: Word | None = None  # machine-readable word, as in errors.py; also "killed", "stopped"
    message: Text | None = None  # one sentence for a person
    step: Count = 0
    steps: Count = 0
    checkpoint_step: Count | None = None
    checkpoint_at: UnixSeconds | None = None  # when that checkpoint was complete
    device: Text | None = None
    tokens_per_second: Number | None = None
    seconds_per_step: Number | None = None  # mean over the last steps
    teacher_wait_share: Number | None = None  # of wall time, over the last steps
    # Last metrics, loss/val included; counts are integers.
    latest: Annotated[
        dict[Annotated[str, Field(max_length=200)], Whole | Number | None],
        Field(max_length=MAX_LATEST),
    ] = field(default_factory=dict)
    version: int = STATUS_VERSION
    boot_id: Word | None = None
    start_ticks: Count | None = None
    attempt: Count | None = None  # of the control plane that started it; None: by hand
    # By a clock that never jumps; None from trainers of earlier releases.
    activity: Word | None = None  # starting, step, evaluation, checkpoint or export
    activity_seconds: Number | None = None  # since it began or last progressed
    usual_seconds: Number | None = None  # what it took lately, the median; None if not yet known
    # STOP_AT_END, or STOP_AT_CHECKPOINT once it was told to; None from trainers of earlier
    # releases, which cannot be told.
    stops_at: Word | None = None

    @property
    def process(self) -> Identity | None:
        """The process that wrote it; None in version 1."""
        if self.boot_id is None or self.start_ticks is None:
            return None
        return Identity(self.pid, self.boot_id, self.start_ticks)

    @property
    def timeless(self) -> "Status":
        """The status without what changes with time alone."""
        return replace(self, heartbeat=0, activity_seconds=None, usual_seconds=None)

    @property
    def stalled_seconds(self) -> float | None:
        """Seconds without progress if that is far more than usual; None if it progresses.

        A run that waits for its teacher is not stalled. None, too, if the trainer does not say what
        it is doing.
        """
        if self.activity is None or self.state is RunState.WAITING_FOR_TEACHER:
            return None
        seconds = self.activity_seconds or 0.0
        return seconds if seconds > patience_seconds(self.activity, self.usual_seconds) else None


_STATUS = TypeAdapter(Status)


def values_of(status: Status) -> dict[str, Any]:
    """Returns the status as JSON values."""
    return {**asdict(status), "state": str(status.state)}


def bounded(status: Status) -> Status:
    """Returns the status as every reader accepts it: texts cut, numbers finite, few metrics."""
    latest = {key[:200]: finite(value) for key, value in islice(status.latest.items(), MAX_LATEST)}
    return replace(
        status,
        reason=None if status.reason is None else cut(status.reason, 100),
        message=None if status.message is None else cut(status.message),
        tokens_per_second=finite(status.tokens_per_second),
        seconds_per_step=finite(status.seconds_per_step),
        teacher_wait_share=finite(status.teacher_wait_share),
        activity_seconds=finite(status.activity_seconds),
        usual_seconds=finite(status.usual_seconds),
        latest=latest,
    )


def parse_status(data: bytes) -> Status:
    """Returns the status that JSON bytes hold, of version 1 or 2.

    Raises:
        CorruptData: it is not a Status; the message names the fields, without their values.
    """
    return parse_versioned(_STATUS, data, _READ_VERSIONS, "run")


def read_status_at(path: Path, parse: Callable[[bytes], _Said]) -> _Said | None:
    """Returns what a status file holds; None before the process wrote one.

    Raises:
        CorruptData: it cannot be read, or is not what `parse` expects; names the file.
    """
    try:
        return parse(read_at_most(path, MAX_STATUS_BYTES))
    except FileNotFoundError:
        return None
    except CorruptData as error:
        raise CorruptData(f"{path} is not readable: {error}") from None


def attempt_of_environment() -> int | None:
    """Returns the attempt that the control plane started this trainer as; None if started by hand.

    Raises:
        Misconfigured: LECTERN_ATTEMPT is not a whole number.
    """
    text = os.environ.get(ATTEMPT_VARIABLE)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise Misconfigured(
            f"{ATTEMPT_VARIABLE} is {inert_name(cut(text, 40))!r}, expected a whole number; it is "
            "set by the control plane for its trainers: unset it"
        )
    return int(text)


def salvaged_status(values: Any) -> Status | None:
    """Returns the status in a stored row, without the fields that are wrong.

    Rows of older releases were stored as their trainers wrote them. None if a field that it cannot
    be without is wrong.
    """
    if not isinstance(values, dict):
        return None
    for _ in range(2):
        try:
            return _STATUS.validate_json(json_of(json.dumps(values).encode()))
        except ValidationError as error:
            wrong = {one["loc"][0] for one in error.errors() if one["loc"]}
            values = {key: value for key, value in values.items() if key not in wrong}
        except (ValueError, TypeError):
            return None
    return None


def patience_seconds(activity: str | None, usual_seconds: float | None) -> float:
    """Returns how long a trainer may make no progress before it counts as stalled.

    Ten times as long as usual, but not less than a minute for a step and ten for anything else; the
    first of its kind, which may load or compile, may take half an hour.
    """
    if usual_seconds is None:
        return _FIRST_PATIENCE_SECONDS
    least = _PATIENCE_SECONDS if activity == "step" else _LONG_PATIENCE_SECONDS
    return max(least, 10 * usual_seconds)
