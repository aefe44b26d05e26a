"""The run folder: the contract between the trainer, which writes it, and its readers.

    runs/<run_id>/
      spec.yaml        resolved RunSpec; written before the trainer starts
      teacher.json     TeacherIdentity that the run was accepted with; missing if it has no teacher
      status.json      Status; replaced atomically, with a heartbeat
      metrics.jsonl    one JSON object per step, with keys such as "loss/kd"; see json_lines.py
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
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from lectern_common.errors import Conflict, CorruptData, NotFound
from lectern_common.files import rename_durably, require_locks, take_lock, write_atomic
from lectern_common.json_lines import append_json_line
from lectern_common.spec.load import dump_spec, load_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity

STATUS_VERSION = 1
_CHECKPOINT_FOLDER = re.compile(r"^step-(\d{8,})$")
HEARTBEAT_SECONDS = 1.0
# In a status's `latest`: the last validation loss and its step, the lowest one and its step.
VALIDATION_LOSS = "loss/val"
VALIDATION_STEP = "loss/val_step"
BEST_VALIDATION = "loss/val_best"
BEST_VALIDATION_STEP = "loss/val_best_step"
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
    """The trainer's last report. Times are Unix seconds; step counts finished steps."""

    run_id: str
    state: RunState
    since: float
    heartbeat: float
    pid: int
    process_create_time: float
    reason: str | None = None  # machine-readable word, as in errors.py; also "killed", "stopped"
    message: str | None = None  # one sentence for a person
    step: int = 0
    steps: int = 0
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None  # when that checkpoint was complete
    device: str | None = None
    tokens_per_second: float | None = None
    seconds_per_step: float | None = None  # mean over the last steps
    teacher_wait_share: float | None = None  # of wall time, over the last steps
    latest: dict[str, float | None] = field(default_factory=dict)  # last metrics, loss/val included
    version: int = STATUS_VERSION


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
        write_atomic(self.status_path, json.dumps(asdict(status)).encode(), durable=False)

    def read_status(self) -> Status | None:
        """Returns the last status, or None before the trainer wrote one.

        Raises:
            CorruptData: the file is not a Status of this version.
        """
        try:
            data = json.loads(self.status_path.read_bytes())
            known = {entry.name for entry in fields(Status)}
            if data["version"] != STATUS_VERSION:
                raise CorruptData(
                    f"{self.status_path} has version {data['version']}, but this program reads "
                    f"version {STATUS_VERSION}; use the release that started the run"
                )
            status = Status(**{key: value for key, value in data.items() if key in known})
            return Status(**{**asdict(status), "state": RunState(status.state)})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptData(f"{self.status_path} is not a run status: {error}") from None

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
        """Appends one event line: {"time", "kind", ...details}."""
        append_json_line(self.events_path, {"time": time.time(), "kind": kind, **details})


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Returns the steps of all checkpoints in ascending order, without verifying them."""
    if not checkpoints.is_dir():
        return []
    matches = (_CHECKPOINT_FOLDER.match(path.name) for path in checkpoints.iterdir())
    return sorted(int(match.group(1)) for match in matches if match)
