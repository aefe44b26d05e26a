"""The run folder: the contract between the trainer, which writes it, and its readers.

    runs/<run_id>/
      spec.yaml        resolved RunSpec; written before the trainer starts
      teacher.json     TeacherIdentity that the run was accepted with; missing if it has no teacher
      status.json      Status; replaced atomically, with a heartbeat
      metrics.jsonl    one JSON object per step, with keys such as "loss/kd"; see json_lines.py
      metrics.index    what charts need of metrics.jsonl; made by the control plane, which makes it
                       again if it is missing or does not fit
      samples.jsonl    how student and teacher continue each prompt of the spec, one JSON object
                       per prompt and evaluation
      events.jsonl     one JSON object per event: state changes, checkpoints, warnings
      trainer.log      stdout and stderr of the trainer
      lock             held (flock) by the trainer while it lives
      checkpoints/     step-00000500/{model.safetensors, optimizer.safetensors, state.json,
                       manifest.json}
      export/          a folder that plain transformers loads

The trainer owns itself: it runs in its own session, holds the lock, and stops on SIGTERM.
"""

import errno
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from lectern_common.errors import Conflict, CorruptData, Misconfigured, NotFound
from lectern_common.files import rename_durably, require_locks, take_lock, write_atomic
from lectern_common.json_lines import append_json_line
from lectern_common.processes import Identity
from lectern_common.spec.load import dump_spec, load_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity
from lectern_common.untrusted import (
    Count,
    Number,
    Pid,
    Text,
    UnixSeconds,
    Word,
    cut,
    finite,
    json_of,
    problems,
    read_at_most,
)
from lectern_common.words import inert_name

STATUS_VERSION = 2
_READ_VERSIONS = (1, 2)
MAX_STATUS_BYTES = 1 << 20
MAX_LATEST = 256  # metrics in a status
# The environment variable by which the control plane tells a trainer which attempt it is.
ATTEMPT_VARIABLE = "LECTERN_ATTEMPT"
_CHECKPOINT_FOLDER = re.compile(r"^step-(\d{8,})$")
HEARTBEAT_SECONDS = 1.0
_PATIENCE_SECONDS, _LONG_PATIENCE_SECONDS, _FIRST_PATIENCE_SECONDS = 60.0, 600.0, 1800.0
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
    device: Text | None = None
    tokens_per_second: Number | None = None
    teacher_wait_share: Number | None = None  # of wall time, over the last steps
    # Last metrics, loss/val included.
    latest: Annotated[
        dict[Annotated[str, Field(max_length=200)], Number | None], Field(max_length=MAX_LATEST)
    ] = field(default_factory=dict)
    version: int = STATUS_VERSION
    boot_id: Word | None = None
    start_ticks: Count | None = None
    attempt: Count | None = None  # of the control plane that started it; None: by hand
    # By a clock that never jumps; None from trainers of earlier releases.
    activity: Word | None = None  # starting, step, evaluation, checkpoint or export
    activity_seconds: Number | None = None  # since it began or last progressed
    usual_seconds: Number | None = None  # what it took lately, the median; None if not yet known

    @property
    def process(self) -> Identity | None:
        """The process that wrote it; None in version 1."""
        if self.boot_id is None or self.start_ticks is None:
            return None
        return Identity(self.pid, self.boot_id, self.start_ticks)

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


def bounded(status: Status) -> Status:
    """Returns the status as every reader accepts it: texts cut, numbers finite, few metrics."""
    latest = {key[:200]: finite(value) for key, value in islice(status.latest.items(), MAX_LATEST)}
    return replace(
        status,
        reason=None if status.reason is None else cut(status.reason, 100),
        message=None if status.message is None else cut(status.message),
        tokens_per_second=finite(status.tokens_per_second),
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
    try:
        values = json.loads(json_of(data))
    except ValueError as error:
        raise CorruptData(f"it is not JSON: {error}") from None
    version = values.get("version") if isinstance(values, dict) else None
    if isinstance(version, bool) or not isinstance(version, int):
        raise CorruptData("it has no version")
    if version not in _READ_VERSIONS:
        raise CorruptData(
            f"it has version {version}, but this program reads versions 1 and 2; use the release "
            "that started the run"
        )
    try:
        # From JSON, not from `values`: only there is text accepted as a RunState.
        return _STATUS.validate_json(json.dumps(values))
    except ValidationError as error:
        raise CorruptData(problems(error)) from None


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


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and the atomic ways to read and write them."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def spec_path(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def teacher_path(self) -> Path:
        return self.path / "teacher.json"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def metrics_index_path(self) -> Path:
        return self.path / "metrics.index"

    @property
    def samples_path(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "trainer.log"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def export_path(self) -> Path:
        return self.path / "export"

    @property
    def newest_step(self) -> int | None:
        """Step of the newest checkpoint, not verified; None without one."""
        return max(checkpoint_steps(self.checkpoints_path), default=None)

    @property
    def packs_chats(self) -> bool:
        """Whether a resume packs chats into rows: it goes on as its newest checkpoint was made.

        False after a release that cut chats at the ends of rows, and for runs without chats. A
        checkpoint that cannot be read is passed over, as the trainer does.
        """
        for step in reversed(checkpoint_steps(self.checkpoints_path)):
            try:
                path = self.checkpoints_path / f"step-{step:08d}" / "state.json"
                return bool(json.loads(path.read_bytes()).get("packs_chats"))
            except (OSError, ValueError, AttributeError):
                continue
        return True

    @classmethod
    def create(
        cls, runs_root: Path, run_id: str, spec: RunSpec, teacher: TeacherIdentity | None = None
    ) -> "RunFolder":
        """Creates the folder with its spec and teacher; it appears whole or not at all.

        Raises:
            Conflict: a folder with this id exists.
            Misconfigured: the file system has no locks, so no trainer could own the folder.
        """
        folder = cls(runs_root / run_id)
        runs_root.mkdir(parents=True, exist_ok=True)
        require_locks(runs_root)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=runs_root) as scratch:
            hidden = cls(Path(scratch) / run_id)
            hidden.path.mkdir(mode=0o750)
            hidden.write_spec(spec)
            if teacher is not None:
                hidden.write_teacher(teacher)
            try:
                rename_durably(hidden.path, folder.path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                raise Conflict(
                    f"run {run_id} exists in {runs_root}; resume it or choose another name"
                ) from None
        return folder

    def write_spec(self, spec: RunSpec) -> None:
        """Replaces spec.yaml atomically."""
        write_atomic(self.spec_path, dump_spec(spec).encode())

    def read_spec(self) -> RunSpec:
        """Returns the resolved spec. Raises InvalidSpec."""
        return load_spec(self.spec_path)

    def write_teacher(self, teacher: TeacherIdentity) -> None:
        """Replaces teacher.json atomically."""
        write_atomic(self.teacher_path, json.dumps(asdict(teacher)).encode())

    def read_teacher(self) -> TeacherIdentity | None:
        """Returns the teacher that the run was accepted with; None if none was recorded.

        Raises:
            CorruptData: the file does not name a teacher.
        """
        try:
            return TeacherIdentity(**json.loads(self.teacher_path.read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CorruptData(f"{self.teacher_path} does not name a teacher: {error}") from None

    def write_status(self, status: Status) -> None:
        """Replaces status.json atomically (not fsynced: it is rewritten every second)."""
        data = json.dumps(asdict(bounded(status)), allow_nan=False).encode()
        write_atomic(self.status_path, data, durable=False)

    def read_status(self) -> Status | None:
        """Returns the last status, or None before the trainer wrote one.

        Raises:
            CorruptData: the file cannot be read, or is not a Status of a known version.
        """
        try:
            return parse_status(read_at_most(self.status_path, MAX_STATUS_BYTES))
        except FileNotFoundError:
            return None
        except CorruptData as error:
            raise CorruptData(f"{self.status_path} is not readable: {error}") from None

    @contextmanager
    def locked(self, patience_seconds: float = 0.0) -> Iterator[int]:
        """Holds the folder's lock and yields its descriptor.

        Waits up to `patience_seconds` for the holder: the children of a killed trainer end a moment
        after it.

        Child processes inherit the lock only if they are given the descriptor: then it is free
        once all of them have ended.

        Raises:
            Conflict: another process holds it.
            NotFound: there is no such run folder.
            Misconfigured: the file system has no locks.
        """
        try:
            descriptor = take_lock(self.path / "lock", patience_seconds)
        except FileNotFoundError:
            raise NotFound(f"no run folder {self.path}") from None
        except BlockingIOError:
            raise Conflict(f"run {self.run_id} is being trained by another process") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Returns True while a trainer holds the lock."""
        try:
            with self.locked():
                return False
        except Conflict:
            return True

    def append_event(self, kind: str, **details: Any) -> None:
        """Appends one event line: {"time", "kind", ...details}; texts that are too long are cut."""
        for key, value in details.items():
            details[key] = cut(value) if isinstance(value, str) else value
        append_json_line(self.events_path, {"time": time.time(), "kind": kind, **details})


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Returns the steps of all checkpoints in ascending order, without verifying them."""
    if not checkpoints.is_dir():
        return []
    matches = (_CHECKPOINT_FOLDER.match(path.name) for path in checkpoints.iterdir())
    return sorted(int(match.group(1)) for match in matches if match)
