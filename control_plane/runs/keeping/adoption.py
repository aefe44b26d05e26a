"""Rows from run folders: of runs that the database does not know, or knew in an older state.

A database may be lost, or restored from a backup that is older than its run folders. What a folder
says is read, not believed; a folder that cannot be read is refused by name, and nothing in it is
touched. The folder's lock and the trainer's command line tell whether it is being trained.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from control_plane.runs.commands import RunCommands
from control_plane.runs.keeping.deletion import aside_of, put_back
from control_plane.runs.queries import Runs
from control_plane.runs.record import Run, Wanted
from lectern_common.errors import (
    Conflict,
    CorruptData,
    InvalidRequest,
    InvalidSpec,
    LecternError,
    NotFound,
)
from lectern_common.files import lock_file
from lectern_common.json_lines import MAX_LINE_BYTES
from lectern_common.logs import get_logger
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import PROC, Handle, Identity
from lectern_common.run.status import RESTING, RunState, Status, values_of
from lectern_common.spec.run_spec import NAME_PATTERN, NAME_RULE
from lectern_common.words import inert_name

Find = Callable[[RunFolder, int, Identity | None], Handle | None]
_MARKS = ("spec.yaml", "status.json", "checkpoints", "metrics.jsonl")
_MAX_LOGGED = 3
_CPU = "cpu"

_log = get_logger()


@dataclass
class Adopted:
    """The runs that now have a row, and each folder that was refused, with the reason."""

    runs: list[Run] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Adoption:
    """Makes and mends rows.

    Args:
        find: returns the living trainer of a folder, as seam.Launcher.find.
        cuda: the machine's GPUs. If it cannot be told which one a trainer has, it has all.
    """

    runs: Runs
    commands: RunCommands
    runs_root: Path
    find: Find
    cuda: Sequence[str] = ()
    proc: Path = PROC

    def adopt(self, run_ids: Iterable[str] | None = None) -> Adopted:
        """Makes a row for each of the folders, the oldest first; a run that has one is passed over.

        Args:
            run_ids: None means all that the database does not know, but not runs that were deleted.
        """
        adopted = Adopted()
        found = []
        for run_id in self.unknown() if run_ids is None else dict.fromkeys(run_ids):
            try:
                if run_ids is None or not self._is_known(run_id):
                    found.append(self._row_of(run_id))
            except LecternError as error:
                adopted.refused.append((inert_name(run_id), inert_name(error)))
            except OSError as error:
                why = f"{error.filename}: {error.strerror}"
                adopted.refused.append((inert_name(run_id), inert_name(why)))
        for row in sorted(found, key=lambda row: float(row["created_at"])):
            with suppress(Conflict):  # another request was faster
                put_back(aside_of(self.runs_root / row["id"]), self.runs_root / row["id"])
                adopted.runs.append(self.commands.adopt(row))
        return adopted

    def unknown(self) -> list[str]:
        """Returns the names of run folders without a row, except those of deleted runs."""
        known = self.runs.known_ids()
        return [path.name for path in _run_folders(self.runs_root) if path.name not in known]

    def mention_unknown(self) -> None:
        """Says in the log which folders have no row, and how to adopt them."""
        unknown = self.unknown()
        if unknown:
            _log.warning(
                "run folders without a row in the database",
                count=len(unknown),
                first=", ".join(map(inert_name, unknown[:_MAX_LOGGED])),
                adopt="lectern runs adopt --all",
            )

    def catch_up(self) -> None:
        """Mends the rows of runs that have had further attempts since the database was backed up.

        Such a row takes the attempt and process of its folder's status, and is active: the next
        look at it finds that process, or records how it ended. Its attempts are not counted again,
        so the status of an earlier process is never taken for that of a later one.
        """
        for run in self.runs.in_states(list(RunState)):
            folder = RunFolder(self.runs_root / run.id)
            try:
                status = folder.read_status()
            except (CorruptData, OSError):
                continue  # the reconcile loop says it, if the run is active
            if status is None or status.process is None or (status.attempt or 0) <= run.attempt:
                continue
            try:
                spec: dict[str, Any] = {"spec": folder.read_spec().model_dump(mode="json")}
            except LecternError:
                spec = {}
            try:
                handle = self.find(folder, status.attempt or 0, status.process)
            except (LecternError, OSError) as error:
                _log.warning("run not caught up with its folder", run=run.id, error=str(error))
                continue
            columns = {
                **spec,
                # One that is not its trainer is not recorded: it would be signalled.
                "handle": None if handle is None else str(handle),
                "attempt": status.attempt,
                "slots": None if handle is None else self._slots(handle, status),
                "status": values_of(status),
            }
            rests = status.state in RESTING and handle is None
            wanted = run.wanted if rests else Wanted.RUNNING
            self.commands.went_on(run.id, wanted, columns)

    def _is_known(self, run_id: str) -> bool:
        try:
            self.runs.get(run_id)
        except NotFound:
            return False
        return True

    def _row_of(self, run_id: str) -> dict[str, Any]:
        """Returns the columns of a folder's run.

        Raises:
            LecternError: there is no such folder, it is damaged, or another program trains it.
        """
        if re.fullmatch(NAME_PATTERN, run_id) is None:
            raise InvalidRequest(f"its name cannot be a run's id: {NAME_RULE}; rename it")
        path = self.runs_root / run_id
        folder = RunFolder(path if path.exists() else aside_of(path))
        if not folder.path.is_dir():
            raise NotFound(f"there is no run folder {path}")
        if not folder.spec_path.is_file():
            raise CorruptData(f"{folder.spec_path} is missing or no file, so its run is not known")
        try:
            spec = folder.read_spec()
        except InvalidSpec as error:
            raise CorruptData(f"{folder.spec_path} is not a run spec: {error}") from None
        teacher = folder.read_teacher()
        status = folder.read_status()
        said = status.process if status is not None and status.state not in RESTING else None
        attempt = 0 if status is None else status.attempt or 0
        handle = self.find(folder, attempt, said)
        if handle is None and _is_locked(folder):
            raise Conflict(
                f"{folder.path} is locked by a process that is not a trainer of this machine and "
                "user; adopt it once that has ended"
            )
        if handle is None:
            status = folder.read_status()  # it may have ended since
        created_at, fork = _created_at(folder), folder.read_forked_from()
        return {
            "id": run_id,
            "name": spec.name,
            "spec": spec.model_dump(mode="json"),
            "teacher": None if teacher is None else asdict(teacher),
            "forked_from": None if fork is None else asdict(fork),
            "created_at": created_at,
            "since": created_at if status is None else status.since,
            "attempt": 0 if status is None else status.attempt or 0,
            "restarts": 0,
            "active_seconds": 0.0,
            "status": None if status is None else values_of(status),
            **self._state(handle, status),
        }

    def _state(self, handle: Handle | None, status: Status | None) -> dict[str, Any]:
        """Returns the columns that say how the run is."""
        if handle is not None:
            stops = status is not None and status.state is RunState.STOPPING
            return {
                "state": RunState.STOPPING if stops else RunState.RUNNING,
                "wanted": Wanted.STOPPED if stops else Wanted.RUNNING,
                "handle": str(handle),
                "slots": self._slots(handle, status),
            }
        if status is None:
            message = "adopted from its folder: no trainer has written in it yet"
            return {"wanted": Wanted.STOPPED, "message": message, "state": RunState.STOPPED}
        if status.state in RESTING:
            stopped = status.state is RunState.STOPPED
            return {
                "state": status.state,
                "wanted": Wanted.STOPPED if stopped else Wanted.RUNNING,
                "reason": status.reason,
                "message": status.message,
            }
        message = f"its trainer is gone; its last word was {status.state} at step {status.step}"
        why = {"reason": "killed", "message": message}
        return {**why, "wanted": Wanted.STOPPED, "state": RunState.INTERRUPTED}

    def _slots(self, handle: Handle, status: Status | None) -> list[str]:
        """Returns the devices that a living trainer holds, as far as it can be told."""
        if status is not None and (status.device or "").startswith(_CPU):
            return [_CPU]
        with suppress(OSError):
            for entry in (self.proc / str(handle.pid) / "environ").read_bytes().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == b"CUDA_VISIBLE_DEVICES" and value:
                    return [f"cuda:{one}" for one in os.fsdecode(value).split(",")]
        return [f"cuda:{one}" for one in self.cuda] or [_CPU]


def _run_folders(root: Path) -> Iterator[Path]:
    """Yields what looks like a run folder, in the order of names."""
    for path in sorted(root.iterdir()):
        is_one = not path.name.startswith(".") and path.is_dir()
        if is_one and any((path / mark).exists() for mark in _MARKS):
            yield path


def _is_locked(folder: RunFolder) -> bool:
    """Returns whether a process holds its lock; makes no lock file."""
    return lock_file(folder.path / "lock").exists() and folder.is_locked()


def _created_at(folder: RunFolder) -> float:
    """Returns when the folder was made, in Unix seconds: the oldest of its first files' times."""
    times = []
    for path in (folder.teacher_path, folder.spec_path, folder.path / "lock", folder.path):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        if folder.events_path.is_file():
            with folder.events_path.open("rb") as file:
                first = json.loads(file.readline(MAX_LINE_BYTES)).get("time")
            if isinstance(first, int | float) and 0 < first < max(times):
                times.append(float(first))
    return min(times)
