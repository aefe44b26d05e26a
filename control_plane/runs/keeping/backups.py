"""Backups of the database: made at starts, before migrations and on a period; verified, few kept.

They lie in a folder of their own (roots.Roots.backups). A name has a number that only rises, since
clocks are set: control-plane-000017-20260801T120000Z-period.sqlite3.
"""

import filecmp
import re
import shlex
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from lectern_common.errors import Misconfigured
from lectern_common.files import fsync, rename_durably
from lectern_common.logs import get_logger
from lectern_common.words import duration

BUSY_TIMEOUT_SECONDS = 2.0
EVERY_HOURS = 6.0
KEPT = 8
RETRY_SECONDS = 600.0
_STAMP = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"-(?P<number>\d{6,})-(?P<stamp>\d{8}T\d{6}Z)-(?P<kind>[a-z]+)\.")

_log = get_logger()


class Kind(StrEnum):
    """Why a backup was made. Of the last two kinds only the newest is kept."""

    PERIOD = "period"
    START = "start"
    MIGRATION = "migration"  # before it


@dataclass(frozen=True)
class Backup:
    """One backup of a database.

    Attributes:
        number: rises with each one.
        made_at: Unix seconds.
    """

    path: Path
    number: int
    made_at: float
    kind: str


class BackupFailed(Exception):
    """The database could not be copied, or its copy is damaged; says why."""


class Backups:
    """The backups of one database.

    Args:
        database: SQLite file; it may be in use.
        folder: created when the first one is made.
        keep: how many of those made on the period are kept.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Path,
        folder: Path,
        keep: int = KEPT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.folder = folder
        self._keep = keep
        self._clock = clock

    def make(self, kind: Kind) -> Path | None:
        """Returns a new, verified backup; None if nothing has changed since the newest one.

        A backup appears whole or not at all, and survives a power cut.

        Raises:
            BackupFailed: naming what to do.
        """
        stamp = datetime.fromtimestamp(self._clock(), UTC).strftime(_STAMP)
        stem, suffix = self.database.stem, self.database.suffix
        hidden = self.folder / f".{stem}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = self.all()
            number = found[0].number + 1 if found else 1
            path = self.folder / f"{stem}-{number:06d}-{stamp}-{kind}{suffix}"
            hidden.unlink(missing_ok=True)
            _copy(self.database, hidden)
            if (problem := problem_of(hidden)) is not None:
                raise BackupFailed(f"the copy of {self.database} is damaged ({problem})")
            if found and filecmp.cmp(hidden, found[0].path, shallow=False):
                return None
            fsync(hidden)
            rename_durably(hidden, path)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise BackupFailed(
                f"cannot copy {self.database} into {self.folder}: {why}; make room and the folder "
                "writable, or set LECTERN_BACKUPS_ROOT to another one"
            ) from None
        finally:
            with suppress(OSError):
                hidden.unlink(missing_ok=True)
        self._remove_old()
        return path

    def all(self) -> list[Backup]:
        """Returns them, newest first."""
        found = []
        for path in self.folder.glob(f"{self.database.stem}-*{self.database.suffix}"):
            named = _NAME.match(path.name.removeprefix(self.database.stem))
            with suppress(OSError, ValueError):
                if named is not None and path.is_file():
                    made = datetime.strptime(named["stamp"], _STAMP).replace(tzinfo=UTC)
                    number = int(named["number"])
                    found.append(Backup(path, number, made.timestamp(), named["kind"]))
        return sorted(found, key=lambda one: one.number, reverse=True)

    def with_earlier(self) -> list[Backup]:
        """Returns them, newest first, with the one that an earlier release left, if it is there."""
        found = self.all()
        with suppress(OSError):
            path = path_of_earlier_releases(self.database)
            found.append(Backup(path, 0, path.stat().st_mtime, Kind.START))
        return found

    def newest_good(self) -> Backup | None:
        """Returns the newest one that is not damaged."""
        return next((one for one in self.with_earlier() if problem_of(one.path) is None), None)

    def require_sound(self) -> None:
        """Raises Misconfigured if the database is damaged, or gone although it has backups.

        The message has the commands that restore the newest good one. Nothing is changed.
        """
        path = self.database
        if path.exists() and path.stat().st_size > 0:
            problem = problem_of(path)
            if problem is None:
                return
            what, also = f"is damaged ({problem})", ""
        elif not self.with_earlier():
            return
        else:
            what = "is missing or empty, but it has backups"
            folder = shlex.quote(str(self.folder))
            also = (
                f" To start with no runs instead, move the backups away: mv {folder} {folder}.old"
            )
        raise Misconfigured(
            f"the database {path} {what}; {self._how_to_restore()}. The run folders beside it are "
            f"not touched.{also}"
        )

    def _how_to_restore(self) -> str:
        path, adopt = shlex.quote(str(self.database)), "lectern runs adopt --all"
        sweep = f"rm -f {path}-wal {path}-shm"
        newest = self.newest_good()
        if newest is None:
            return (
                f"there is no good backup in {self.folder}; to start without it: {sweep}; mv "
                f"{path} {path}.damaged; start it again; then make the runs anew from their "
                f"folders: {adopt}"
            )
        age = duration(max(0.0, self._clock() - newest.made_at) / 3600)
        return (
            f"restore the newest good backup, made {age} ago: {sweep}; cp "
            f"{shlex.quote(str(newest.path))} {path}; start it again; then add the runs that are "
            f"younger than it: {adopt}"
        )

    def _remove_old(self) -> None:
        kept = dict.fromkeys(Kind, 1) | {Kind.PERIOD: self._keep}
        for kind, most in kept.items():
            for old in [one for one in self.all() if one.kind == kind][most:]:
                with suppress(OSError):  # the next one tries again
                    old.path.unlink()
        with suppress(OSError):
            path_of_earlier_releases(self.database).unlink()


class PeriodicBackups:
    """Makes a backup every few hours, in a thread of its own: it may take as long as it takes.

    A failure is logged once, and tried again until one is made.

    Args:
        every_hours: 0 makes none.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        backups: Backups,
        every_hours: float = EVERY_HOURS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backups = backups
        self._seconds = 3600 * every_hours
        self._monotonic = monotonic
        self._due = monotonic() + self._seconds
        self._failed = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="backups", daemon=True)

    def start(self) -> None:
        if self._seconds > 0:
            self._thread.start()

    def close(self) -> None:
        """Ends the thread; returns once it has ended."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def soon(self) -> None:
        """Makes the next one soon: that of the start has failed."""
        self._failed = True
        self._due = self._monotonic() + min(self._seconds, RETRY_SECONDS)

    def look(self) -> None:
        """Makes a backup if it is due."""
        if self._seconds <= 0 or self._monotonic() < self._due:
            return
        self._due = self._monotonic() + self._seconds
        try:
            made = self._backups.make(Kind.PERIOD)
        except BackupFailed as error:
            if not self._failed:
                _log.warning("database not backed up", error=str(error))
            self.soon()
            return
        if made is not None or self._failed:
            _log.info("database backed up", file=str(made or self._backups.all()[0].path))
        self._failed = False

    def _keep_on(self) -> None:
        while not self._end.wait(max(0.05, min(60.0, self._due - self._monotonic()))):
            self.look()


def path_of_earlier_releases(database: Path) -> Path:
    """Returns where earlier releases kept their only backup; it goes once there is a new one."""
    return database.with_name(f"{database.name}.backup")


def problem_of(path: Path) -> str | None:
    """Returns what SQLite finds wrong with a database file, on one line; None if it is sound."""
    mode: Literal["rw", "ro"] = "rw" if path.with_name(f"{path.name}-wal").exists() else "ro"
    try:
        if path.stat().st_size == 0:
            return "it is empty"
        with closing(_connected(path, mode)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except (sqlite3.DatabaseError, OSError) as error:
        found = str(error)
    return None if found == "ok" else " ".join(found.split())


def _copy(source: Path, target: Path) -> None:
    """Copies a database while others write it: SQLite reads it as it is at one moment."""
    with closing(_connected(source, "rw")) as read, closing(sqlite3.connect(target)) as written:
        read.backup(written)


def _connected(path: Path, mode: Literal["rw", "ro"]) -> sqlite3.Connection:
    # One that nobody writes is read as it lies there: no file appears beside it.
    more = "&immutable=1" if mode == "ro" else ""
    uri = f"{path.absolute().as_uri()}?mode={mode}{more}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS)
    connection.execute(f"PRAGMA busy_timeout={int(1000 * BUSY_TIMEOUT_SECONDS)}")
    return connection
