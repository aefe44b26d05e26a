"""A file system to fill up: a tmpfs that only trainers see, in their own namespace."""

import contextlib
import errno
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faults.processes import ROOT, environment
from faults.stage import Stage
from faults.trainer.runs.courses import Course
from faults.trainer.runs.forked import ForkServer
from faults.trainer.runs.run import Trainer
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec

_SIZE_MIB = 4
_BALLAST = "ballast"
_ALONE = ("unshare", "-rm", "sh", "-c")  # as root of a namespace with its own mounts


@dataclass(frozen=True)
class SmallDisk:
    """A disk on which runs train until no space is left.

    Attributes:
        folder: a folder on it, as this process sees it.
        fork_server: starts trainers that also see it.
        is_real: False means that there is no tmpfs, and the full disk is injected.
        size_mib: of the tmpfs.
    """

    folder: Path
    fork_server: ForkServer
    is_real: bool
    size_mib: int = _SIZE_MIB

    @property
    def kind(self) -> str:
        return (
            f"a tmpfs of {self.size_mib} MiB" if self.is_real else "injected (no tmpfs available)"
        )

    @property
    def faults(self) -> tuple[str, ...]:
        """Faults for a trainer that must run out of space after its step 20."""
        return () if self.is_real else ("full-disk=30",)

    def begin(self, course: Course) -> RunFolder:
        """Returns the folder of one more run of a course, on this disk."""
        number = len(list(self.folder.glob("run-*")))
        return RunFolder.create(self.folder, f"run-{number}", parse_spec(course.spec))

    def trainer(
        self,
        stage: Stage,
        course: Course,
        folder: RunFolder,
        *faults: str,
        options: tuple[str, ...] = (),
    ) -> Trainer:
        return Trainer(
            stage, course.home, folder, options, forked=True, faults=faults, server=self.fork_server
        )

    def fill(self, room: int) -> None:
        """Takes all space but `room` bytes."""
        if not self.is_real:
            return
        path = self.folder / _BALLAST
        with path.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(max(0, file.tell() - room))

    def empty(self) -> None:
        """Frees the space."""
        (self.folder / _BALLAST).unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(stage: Stage, size_mib: int = _SIZE_MIB) -> Iterator[SmallDisk]:
    """Yields a disk, which disappears with the processes that see it."""
    folder = stage.new_folder()
    if not may_mount(folder):
        yield SmallDisk(folder, stage.fork_server, is_real=False)
        return
    prefix = in_own_mounts(folder, size_mib)
    server = ForkServer(stage.new_folder() / "forked", environment(), ROOT, prefix)
    try:
        yield SmallDisk(server.seen_by_it(folder), server, is_real=True, size_mib=size_mib)
    finally:
        server.close()


def in_own_mounts(folder: Path, size_mib: int) -> tuple[str, ...]:
    """Returns words before a command that make it see a tmpfs in the folder's place."""
    return (*_ALONE, f'mount -t tmpfs -o size={size_mib}m tmpfs "$0" && exec "$@"', str(folder))


def may_mount(folder: Path) -> bool:
    """Returns whether `in_own_mounts` works here."""
    words = (*in_own_mounts(folder, 1), "true")
    return shutil.which(_ALONE[0]) is not None and not subprocess.run(words, check=False).returncode
