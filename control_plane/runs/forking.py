"""Makes a run from a checkpoint of another one: whole and verified, or nothing.

    1. the checkpoint's files are linked into a hidden folder (copied, if its file system has no
       links): at once, so that the source's trainer cannot delete them any more
    2. the fork is checked like any new run
    3. every byte is compared with the manifest; the state is written for the fork
    4. in one transaction, the folder is renamed to `.forked-<id>`, and the run's row is inserted
    5. the renamed folder becomes the run's

A kill before the commit leaves a folder, which the next start removes. A kill after it leaves
`.forked-<id>`, which the next start, or the start of its trainer, puts in place.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from control_plane.runs.creation import Fork
from control_plane.runs.queries import Runs
from control_plane.runs.record import Run
from lectern_common.errors import (
    Conflict,
    CorruptData,
    DiskFull,
    InvalidRequest,
    LecternError,
    NotFound,
)
from lectern_common.files import fsync, rename_durably, require_locks
from lectern_common.logs import get_logger
from lectern_common.run.checkpoint_files import (
    FILE_NAMES,
    MANIFEST_NAME,
    ROLLOUTS_NAME,
    STATE_NAME,
    checkpoint_path,
    file_facts,
    forked_state,
    state_in,
    verified_state,
    write_json,
)
from lectern_common.run.folder import ForkedFrom, RunFolder, checkpoint_steps
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity

_MAKING = ".forking-"
_MADE = ".forked-"
_TRIES = 5  # to link the newest checkpoint of a run that writes and deletes them
_MAX_STEPS_NAMED = 10
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_STATE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, FileNotFoundError)

_log = get_logger()


@dataclass(frozen=True)
class TakenCheckpoint:
    """A checkpoint of another run in a hidden folder, not yet verified.

    Attributes:
        source: whose it is.
        was_in: the folder of that run.
        folder: becomes the fork's folder.
        begun: the spec of that run when it wrote the checkpoint.
        packs_chats: whether its rows of chats hold whole chats.
    """

    source: ForkedFrom
    was_in: RunFolder
    folder: RunFolder
    begun: RunSpec
    packs_chats: bool

    def keeps_rows(self, spec: RunSpec) -> bool:
        """Returns whether a spec makes its rows of the same datasets, cut to the same length."""
        names = ("kind", "path", "validation_path", "seq_len")
        return all(getattr(spec.data, name) == getattr(self.begun.data, name) for name in names)

    def keeps_rollouts(self, spec: RunSpec) -> bool:
        """Returns whether the student of a spec would write the same rows, in the same places."""

        def written(one: RunSpec) -> Any:
            rollout = one.rollout and one.rollout.model_dump(exclude={"keep"})
            return rollout, one.seed, one.batch.sequences_per_step

        return self.keeps_rows(spec) and bool(written(spec) == written(self.begun))


@contextmanager
def taken(source: RunFolder, step: int | None) -> Iterator[TakenCheckpoint]:
    """Yields a run's checkpoint, linked; at the end, nothing of it is left unless it became a run.

    Args:
        source: the run's folder; its trainer may be at work.
        step: of the checkpoint; None means the newest.

    Raises:
        InvalidRequest: there is no checkpoint of that step.
        Conflict: there is none at all, or it was deleted meanwhile.
        CorruptData: its state cannot be read.
        DiskFull: no space.
    """
    root = source.path.parent
    with _full_disk_named(source.run_id):
        require_locks(root)
        scratch = Path(tempfile.mkdtemp(prefix=_MAKING, dir=root))
        try:
            yield _take(source, step, RunFolder(scratch / source.run_id))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def complete(
    taken: TakenCheckpoint,
    spec: RunSpec,
    teacher: TeacherIdentity | None,
    *,
    packs_chats: bool,
) -> None:
    """Verifies every byte of the checkpoint, and makes its folder that of the fork.

    Raises:
        CorruptData: a file is not what the manifest says.
        DiskFull: no space.
    """
    source, folder = taken.source, taken.folder
    path = checkpoint_path(folder.checkpoints_path, source.step)
    with _full_disk_named(source.run_id):
        try:
            state = verified_state(path)
            manifest = json.loads((path / MANIFEST_NAME).read_bytes())
            if not taken.keeps_rollouts(spec) and manifest["files"].pop(ROLLOUTS_NAME, None):
                (path / ROLLOUTS_NAME).unlink()
            resolved = spec.model_dump(mode="json")
            forked = forked_state(state, asdict(source), resolved, teacher, packs_chats)
            for name in (STATE_NAME, MANIFEST_NAME):
                (path / name).unlink()  # they may be links, which are not written to
            write_json(path / STATE_NAME, forked)
        except (CorruptData, ValueError) as error:  # ValueError: a number that is not finite
            raise _broken(taken.was_in, source.step, _said(error, folder, taken.was_in)) from None
        manifest["files"][STATE_NAME] = file_facts(path / STATE_NAME)
        write_json(path / MANIFEST_NAME, manifest)
        folder.write_spec(spec)
        if teacher is not None:
            folder.write_teacher(teacher)
        folder.write_forked_from(source)
        for written in (*folder.path.rglob("*"), folder.path):
            fsync(written)


def created(taken: TakenCheckpoint, create: Callable[[Fork], Run], runs: Runs) -> Run:
    """Returns the fork's run once its folder and its row are both there.

    Args:
        taken: completed.
        create: creates the row; calls the fork's `place` before it is visible.
        runs: reads the rows.

    Raises:
        LecternError: as `create` says; nothing is left then.
        DiskFull: no space to rename the folder.
    """
    root, placed = taken.was_in.path.parent, list[str]()

    def place(run_id: str) -> None:
        rename_durably(taken.folder.path, _made(root, run_id))
        placed.append(run_id)

    try:
        with _full_disk_named(taken.source.run_id):
            run = create(Fork(taken.source, place))
    except BaseException:
        for run_id in placed:
            with suppress(SQLAlchemyError):  # the next start tries again
                _settle(runs, root, run_id)
        raise
    try:
        put_fork_in_place(root, run.id)
    except OSError as error:  # the start of its trainer tries again
        _log.warning("fork not yet in place", run=run.id, error=str(error))
    return run


def put_fork_in_place(root: Path, run_id: str) -> None:
    """Makes the folder of a fork, whose row is there, the run's, unless it is already."""
    with suppress(FileNotFoundError):
        rename_durably(_made(root, run_id), root / run_id)


def finish_forks(runs: Runs, root: Path) -> None:
    """Undoes or finishes the forks of a process that was killed."""
    for scratch in root.glob(f"{_MAKING}*"):
        shutil.rmtree(scratch, ignore_errors=True)
    for made in root.glob(f"{_MADE}*"):
        _settle(runs, root, made.name.removeprefix(_MADE))


def _settle(runs: Runs, root: Path, run_id: str) -> None:
    try:
        runs.get(run_id)
    except NotFound:
        shutil.rmtree(_made(root, run_id), ignore_errors=True)
    else:
        put_fork_in_place(root, run_id)


def _made(root: Path, run_id: str) -> Path:
    return root / f"{_MADE}{run_id}"


def _take(source: RunFolder, step: int | None, folder: RunFolder) -> TakenCheckpoint:
    """Links a checkpoint into a new folder; its trainer may delete it at any moment."""
    for _ in range(_TRIES):
        chosen = _chosen(source, step)
        path = checkpoint_path(folder.checkpoints_path, chosen)
        shutil.rmtree(folder.path, ignore_errors=True)
        path.mkdir(parents=True, mode=0o750)
        if _linked(checkpoint_path(source.checkpoints_path, chosen), path):
            try:
                state = state_in(path)
                begun, packs_chats = parse_spec(state["spec"]), bool(state.get("packs_chats"))
            except (*_NO_STATE, LecternError) as error:
                why = _said(error, folder, source)
                raise _broken(source, chosen, f"its state cannot be read ({why})") from None
            origin = ForkedFrom(source.run_id, chosen)
            return TakenCheckpoint(origin, source, folder, begun, packs_chats)
        if step is not None:
            break
    what = "its newest checkpoint" if step is None else f"the checkpoint of step {step}"
    raise Conflict(
        f"run {source.run_id} deleted {what} while it was being forked (its checkpoint.keep_last "
        "says how many it keeps); fork another one"
    )


def _chosen(source: RunFolder, step: int | None) -> int:
    steps = checkpoint_steps(source.checkpoints_path)
    if not steps:
        raise Conflict(
            f"run {source.run_id} has no checkpoint to fork; it writes one every "
            "checkpoint.every_steps, when it is stopped, and at its end"
        )
    if step is None:
        return steps[-1]
    if step not in steps:
        there = ", ".join(map(str, steps[-_MAX_STEPS_NAMED:]))
        why = f"run {source.run_id} has no checkpoint of step {step}; it has {there}"
        raise InvalidRequest(why, field="checkpoint")
    return step


def _linked(source: Path, target: Path) -> bool:
    """Links or copies the files of a checkpoint; returns False if it vanished meanwhile.

    Raises:
        CorruptData: it is still there, but lacks a file.
    """
    with suppress(FileNotFoundError):  # not every checkpoint has it; the manifest tells
        _link(source / ROLLOUTS_NAME, target / ROLLOUTS_NAME)
    for name in FILE_NAMES:
        try:
            _link(source / name, target / name)
        except FileNotFoundError:
            if not source.is_dir():
                return False
            run = RunFolder(source.parent.parent)
            raise _broken(run, int(source.name[5:]), f"it has no {name}") from None
    return True


def _link(source: Path, target: Path) -> None:
    """Makes `target` a second name of a file, or a copy if that cannot be, as of a link."""
    if not source.is_file():
        raise FileNotFoundError(source)  # not even a pipe, which would never end
    if not source.is_symlink():
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                raise
    shutil.copyfile(source, target)
    target.chmod(0o640)


def _broken(source: RunFolder, step: int, why: str) -> CorruptData:
    return CorruptData(
        f"the checkpoint of step {step} of run {source.run_id} is damaged, and was not forked: "
        f"{why}; fork another one",
        field="checkpoint",
    )


def _said(error: Exception, folder: RunFolder, was_in: RunFolder) -> str:
    """Returns what an error says, with the path that people know."""
    return str(error).replace(str(folder.path), str(was_in.path))


@contextmanager
def _full_disk_named(run_id: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"no space left to fork run {run_id}; nothing of the fork is left: free some, and fork "
            "it again"
        ) from error
