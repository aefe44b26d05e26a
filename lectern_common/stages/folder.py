"""The task folder: the contract between the process of a task, which writes it, and its readers.

    tasks/<task_id>/
      task.json    what is asked: {"stage": "evaluate", and the fields of that stage's request};
                   written before the process starts, never changed
      status.json  TaskStatus; replaced atomically, with a heartbeat
      task.log     stdout and stderr of the process
      lock         held (flock) by the process while it lives
      work/        what the stage keeps in order to go on after a stop or a kill
      result.json  a JSON object; there once the task has succeeded
      result.md    the same for people, of stages that write such a text

The process is `python -m student_trainer STAGE FOLDER`. It stops on SIGTERM; started again on the
same folder, it goes on.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lectern_common.errors import Conflict, CorruptData, NotFound
from lectern_common.files import is_held, locked_folder, new_folder, require_locks, write_atomic
from lectern_common.run.status import read_status_at
from lectern_common.run.untrusted import json_of, read_at_most
from lectern_common.stages.status import TaskStatus, bounded, parse_status

MAX_TASK_BYTES = 1 << 20
MAX_RESULT_BYTES = 16 << 20
MARKDOWN = "markdown"  # the key of a stage's result whose text goes to result.md


@dataclass(frozen=True)
class TaskFolder:
    """Paths of one task, and the atomic ways to read and write them."""

    path: Path

    @property
    def task_id(self) -> str:
        return self.path.name

    @property
    def task_path(self) -> Path:
        return self.path / "task.json"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def log_path(self) -> Path:
        return self.path / "task.log"

    @property
    def work_path(self) -> Path:
        return self.path / "work"

    @property
    def result_path(self) -> Path:
        return self.path / "result.json"

    @property
    def markdown_path(self) -> Path:
        return self.path / "result.md"

    @classmethod
    def create(cls, path: Path, stage: str, asked: Mapping[str, Any]) -> "TaskFolder":
        """Creates the folder with what is asked; it appears whole or not at all.

        Args:
            path: must not exist, or be empty; its parents are made.
            stage: the name of the stage.
            asked: the fields of its request, as JSON values; a "stage" among them is left out.

        Raises:
            Conflict: there is something at the path.
            Misconfigured: the file system has no locks, so no process could own the folder.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        require_locks(path.parent)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Conflict(f"{path} exists; choose another folder")
        with new_folder(path, path.with_name(f".new-{path.name}")) as hidden:
            text = json.dumps({**asked, "stage": stage}, indent=1, allow_nan=False)
            (hidden / cls(path).task_path.name).write_text(text)
        return cls(path)

    def read_asked(self) -> tuple[str, dict[str, Any]]:
        """Returns the stage and the fields of its request.

        Raises:
            NotFound: there is no task in this folder.
            CorruptData: task.json is not what `create` writes.
        """
        try:
            asked = json.loads(json_of(read_at_most(self.task_path, MAX_TASK_BYTES)))
            stage = asked.pop("stage")
            if not isinstance(stage, str):
                raise TypeError("its stage is not text")
        except FileNotFoundError:
            raise NotFound(f"no task in {self.path}: it has no {self.task_path.name}") from None
        except CorruptData as error:
            raise CorruptData(f"{self.task_path} is not readable: {error}") from None
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise CorruptData(f"{self.task_path} does not say what is asked: {error!r}") from None
        return stage, asked

    def write_status(self, status: TaskStatus) -> None:
        """Replaces status.json atomically (not fsynced: it is rewritten every second)."""
        data = json.dumps(asdict(bounded(status)), allow_nan=False).encode()
        write_atomic(self.status_path, data, durable=False)

    def read_status(self) -> TaskStatus | None:
        """Returns the last status, or None before the process wrote one.

        Raises:
            CorruptData: the file cannot be read, or is not a TaskStatus.
        """
        return read_status_at(self.status_path, parse_status)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json, and before it result.md if the result has a "markdown".

        Raises:
            ValueError: the result is not JSON (it holds NaN, say), or is too large to be read.
        """
        values = dict(result)
        markdown = values.pop(MARKDOWN, None)
        data = json.dumps(values, indent=1, allow_nan=False).encode()
        if len(data) > MAX_RESULT_BYTES:
            raise ValueError(f"the result has {len(data):,} bytes; at most {MAX_RESULT_BYTES:,}")
        if markdown is not None:
            write_atomic(self.markdown_path, str(markdown).encode())
        write_atomic(self.result_path, data)

    def read_result(self) -> dict[str, Any] | None:
        """Returns the result, with its "markdown" if there is one; None before the task succeeded.

        Raises:
            CorruptData: it cannot be read, or is not a JSON object.
        """
        try:
            result = json.loads(json_of(read_at_most(self.result_path, MAX_RESULT_BYTES)))
        except FileNotFoundError:
            return None
        except (CorruptData, ValueError) as error:
            raise CorruptData(f"{self.result_path} is not readable: {error}") from None
        if not isinstance(result, dict):
            raise CorruptData(f"{self.result_path} is not a JSON object")
        try:
            text = read_at_most(self.markdown_path, MAX_RESULT_BYTES)
            result[MARKDOWN] = text.decode(errors="replace")
        except FileNotFoundError:
            pass
        return result

    def locked(self, patience_seconds: float = 0.0) -> AbstractContextManager[int]:
        """Holds the folder's lock and yields its descriptor; see `files.locked_folder`.

        Raises:
            Conflict: another process works on the task.
            NotFound: there is no such folder.
            Misconfigured: the file system has no locks.
        """
        return locked_folder(
            self.path,
            missing=f"no task folder {self.path}",
            busy=f"task {self.task_id} is being worked on by another process",
            patience_seconds=patience_seconds,
        )

    def is_locked(self) -> bool:
        """Returns True while a process works on the task."""
        return is_held(self.locked())
