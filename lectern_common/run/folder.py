"""The run folder: the contract between the trainer, which writes it, and its readers.

    runs/<run_id>/
      spec.yaml        resolved RunSpec; written before the trainer starts
      teacher.json     TeacherIdentity that the run was accepted with; missing if it has no teacher
      teachers.json    the same of a run of several teachers, by name; missing without several
      forked_from.json run and step of the checkpoint that the run began with; missing if it was not
                       forked
      status.json      Status; replaced atomically, with a heartbeat
      metrics.jsonl    one JSON object per step, with keys such as "loss/kd"; see json_lines.py
      metrics.index    what charts need of metrics.jsonl; made by the control plane, which makes it
                       again if it is missing or does not fit
      samples.jsonl    how student and teacher continue each prompt of the spec, one JSON object
                       per prompt and evaluation
      rollouts.jsonl   some of the rows that the student wrote, with the teacher's judgement of each
                       token, one JSON object per row; missing without rollouts
      events.jsonl     one JSON object per event: state changes, checkpoints, warnings
      trainer.log      stdout and stderr of the trainer
      lock             held (flock) by the trainer while it lives
      checkpoints/     step-00000500/{model.safetensors, optimizer.safetensors, state.json,
                       manifest.json}
      export/          a folder that plain transformers loads
      tasks/           a folder for each evaluation, export and publication of the run; see
                       lectern_common/stages/folder.py

The trainer owns itself: it runs in its own session, holds the lock, and stops on SIGTERM, or after
its next checkpoint on SIGUSR1. Only a trainer whose status has `stops_at` knows SIGUSR1, which
ends any other.
"""

import errno
import json
import re
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lectern_common.errors import Conflict, CorruptData
from lectern_common.files import is_held, locked_folder, rename_durably, require_locks, write_atomic
from lectern_common.json_lines import append_json_line
from lectern_common.run.checkpoint_files import STATE_NAME, checkpoint_path
from lectern_common.run.status import (
    MAX_STATUS_BYTES,
    Status,
    bounded,
    parse_status,
    read_status_at,
)
from lectern_common.run.untrusted import cut, read_at_most
from lectern_common.spec.load import dump_spec, load_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity

STOP_AT_CHECKPOINT_SIGNAL = signal.SIGUSR1
# Names a file that means the same once it is there, where a scheduler sends no such signal.
STOP_FILE_VARIABLE = "LECTERN_STOP_AT_CHECKPOINT_FILE"
_CHECKPOINT_FOLDER = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True)
class ForkedFrom:
    """The checkpoint that a run began with: of which run, after how many steps."""

    run_id: str
    step: int

    def __str__(self) -> str:
        return f"run {self.run_id} at step {self.step}"

    @classmethod
    def of_json(cls, data: Any) -> "ForkedFrom":
        """Returns what `asdict` wrote. Raises ValueError if it is anything else."""
        run_id, step = (data.get(key) if isinstance(data, dict) else None for key in _FORKED)
        if not isinstance(run_id, str) or not isinstance(step, int) or isinstance(step, bool):
            raise ValueError("it does not name a run and a step")
        return cls(run_id, step)


_FORKED = ("run_id", "step")


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
    def teachers_path(self) -> Path:
        return self.path / "teachers.json"

    @property
    def forked_from_path(self) -> Path:
        return self.path / "forked_from.json"

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
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.jsonl"

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
    def gguf_path(self) -> Path:
        return self.path / "gguf"

    @property
    def tasks_path(self) -> Path:
        return self.path / "tasks"

    def checkpoint_time(self, step: int) -> float | None:
        """Returns when the checkpoint of a step was complete, in Unix seconds; None if it is not
        there.
        """
        try:
            return (self.checkpoints_path / f"step-{step:08d}").stat().st_mtime
        except OSError:
            return None

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
                path = checkpoint_path(self.checkpoints_path, step) / STATE_NAME
                return bool(json.loads(path.read_bytes()).get("packs_chats"))
            except (OSError, ValueError, AttributeError):
                continue
        return True

    @classmethod
    def create(
        cls,
        runs_root: Path,
        run_id: str,
        spec: RunSpec,
        teacher: TeacherIdentity | None = None,
        teachers: Mapping[str, TeacherIdentity] | None = None,
    ) -> "RunFolder":
        """Creates the folder with its spec and teacher; it appears whole or not at all.

        Args:
            teacher: that it is accepted with.
            teachers: the same of a run of several sources, by name.

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
            if teachers:
                hidden.write_teachers(teachers)
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
            values = json.loads(read_at_most(self.teacher_path, MAX_STATUS_BYTES))
            if not all(isinstance(value, str) for value in values.values()):
                raise ValueError("its values are not texts")
            return TeacherIdentity(**{key: cut(value) for key, value in values.items()})
        except FileNotFoundError:
            return None
        except CorruptData as error:
            raise CorruptData(f"{self.teacher_path} is not readable: {error}") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptData(f"{self.teacher_path} does not name a teacher: {error}") from None

    def write_teachers(self, teachers: Mapping[str, TeacherIdentity]) -> None:
        """Replaces teachers.json, the teachers of a run of several by name, atomically."""
        values = {name: asdict(teacher) for name, teacher in teachers.items()}
        write_atomic(self.teachers_path, json.dumps(values).encode())

    def read_teachers(self) -> dict[str, TeacherIdentity]:
        """Returns the teachers that a run of several was accepted with; {} if none was recorded.

        Raises:
            CorruptData: the file does not name teachers.
        """
        try:
            values = json.loads(read_at_most(self.teachers_path, MAX_STATUS_BYTES))
            texts = [text for one in values.values() for text in one.values()]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("its values are not texts")
            return {
                name: TeacherIdentity(**{key: cut(text) for key, text in one.items()})
                for name, one in values.items()
            }
        except FileNotFoundError:
            return {}
        except CorruptData as error:
            raise CorruptData(f"{self.teachers_path} is not readable: {error}") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptData(f"{self.teachers_path} does not name teachers: {error}") from None

    def write_forked_from(self, forked: ForkedFrom) -> None:
        """Replaces forked_from.json atomically."""
        write_atomic(self.forked_from_path, json.dumps(asdict(forked)).encode())

    def read_forked_from(self) -> ForkedFrom | None:
        """Returns the checkpoint that the run began with; None if it was not forked.

        Raises:
            CorruptData: the file does not name a checkpoint.
        """
        try:
            return ForkedFrom.of_json(json.loads(self.forked_from_path.read_bytes()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CorruptData(
                f"{self.forked_from_path} does not name a checkpoint: {error}"
            ) from None

    def write_status(self, status: Status) -> None:
        """Replaces status.json atomically (not fsynced: it is rewritten every second)."""
        data = json.dumps(asdict(bounded(status)), allow_nan=False).encode()
        write_atomic(self.status_path, data, durable=False)

    def read_status(self) -> Status | None:
        """Returns the last status, or None before the trainer wrote one.

        Raises:
            CorruptData: the file cannot be read, or is not a Status of a known version.
        """
        return read_status_at(self.status_path, parse_status)

    def locked(self, patience_seconds: float = 0.0) -> AbstractContextManager[int]:
        """Holds the folder's lock and yields its descriptor; see `files.locked_folder`.

        Raises:
            Conflict: another process trains the run.
            NotFound: there is no such run folder.
            Misconfigured: the file system has no locks.
        """
        return locked_folder(
            self.path,
            missing=f"no run folder {self.path}",
            busy=f"run {self.run_id} is being trained by another process",
            patience_seconds=patience_seconds,
        )

    def is_locked(self) -> bool:
        """Returns True while a trainer holds the lock."""
        return is_held(self.locked())

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
