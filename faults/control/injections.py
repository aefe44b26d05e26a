"""Faults of a control plane, injected into the process before it starts.

die-at=POINT:NUMBER     kills itself the NUMBERth time that it has `claimed` a run, `spawned` a
                        trainer, `forked` one, or `told` a forked one what it is, or is about to
                        execute a `statement` of a migration
clock=FILE              the time of day, and the time of the boot, are off by the seconds that the
                        file holds; for trainers too
database=FILE           the database is what the file says: `read-only`, or `full`
descriptors=NUMBER      it may have this many, connections included
environment=NAME=VALUE  a variable of the environment
blind=FILE              while the file exists, no process can be looked at
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.replacing import put


def _die_at(value: str) -> None:
    from control_plane.runs.commands import JobCommands
    from control_plane.trainers.launching.fork_server import Forked
    from control_plane.trainers.launching.processes import LocalProcesses

    point, _, number = value.partition(":")
    left = int(number or 1)

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if point == "claimed":
        claim = JobCommands.claim

        def claimed(self: JobCommands[Any], *arguments: Any) -> Any:
            run = claim(self, *arguments)
            if run is not None:
                reached()
            return run

        put(JobCommands, "claim", claimed)
    elif point == "spawned":
        start = LocalProcesses.start

        def started(self: LocalProcesses, *arguments: Any, **named: Any) -> Any:
            process = start(self, *arguments, **named)
            reached()
            return process

        put(LocalProcesses, "start", started)
    elif point in ("forked", "told"):
        become = Forked.become

        def becomes(self: Forked, *arguments: Any) -> None:
            if point == "forked":
                reached()
            become(self, *arguments)
            if point == "told":
                reached()

        put(Forked, "become", becomes)
    else:
        _before_each_statement_of_a_migration(reached)


def _before_each_statement_of_a_migration(reached: Callable[[], None]) -> None:
    import sqlalchemy as sa

    from control_plane.runs.store import Store

    migrate, migrating = Store._migrate, False

    def migrated(self: Store) -> None:
        nonlocal migrating
        migrating = True
        migrate(self)
        reached()  # committed
        migrating = False

    def executes(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if migrating and not statement.startswith(("SELECT", "PRAGMA")):
            reached()

    put(Store, "_migrate", migrated)
    sa.event.listen(sa.Engine, "before_cursor_execute", executes)


def offset_of(file: Path) -> float:
    """Returns the seconds that a file holds; 0 without one."""
    try:
        return float(file.read_text() or 0)
    except FileNotFoundError:
        return 0.0


def step_clock(value: str) -> Callable[[], float]:
    """Changes the time of day and of the boot of this process; returns the changed clock."""
    from psutil import _pslinux

    file, real, booted = Path(value), time.time, _pslinux.boot_time

    def stepped() -> float:
        return real() + offset_of(file)

    def stepped_boot() -> float:
        boot: float = booted() + offset_of(file)
        return boot

    put(time, "time", stepped)
    put(_pslinux, "boot_time", stepped_boot)
    return stepped


def _clock(value: str) -> None:
    from control_plane import plane

    clock, opened = step_clock(value), plane.open_plane

    def with_clock(*arguments: Any, **named: Any) -> Any:
        return opened(*arguments, **{**named, "clock": clock})

    put(plane, "open_plane", with_clock)


def _database(value: str) -> None:
    from control_plane.runs import store

    file, made = Path(value), store._engine

    def engine(path: Path) -> Any:
        from sqlalchemy import event

        found = made(path)

        @event.listens_for(found, "checkout")
        def _as_the_file_says(connection: Any, *_: Any) -> None:
            said = ""
            with contextlib.suppress(FileNotFoundError):
                said = file.read_text().strip()
            connection.execute(f"PRAGMA query_only={int(said == 'read-only')}")
            # SQLite never goes below the pages that there are, so that the next one is too many.
            connection.execute(f"PRAGMA max_page_count={1 if said == 'full' else 4294967294}")

        return found

    put(store, "_engine", engine)


def _blind(value: str) -> None:
    from control_plane.trainers.launching.processes import LocalProcesses

    file = Path(value)

    def blinded(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*arguments: Any, **named: Any) -> Any:
            if file.exists():
                raise OSError(5, "the processes cannot be looked at")
            return look(*arguments, **named)

        return looked

    for name in ("is_alive", "find", "start"):
        put(LocalProcesses, name, blinded(getattr(LocalProcesses, name)))


def _descriptors(value: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (int(value), int(value)))


def _environment(value: str) -> None:
    name, _, text = value.partition("=")
    os.environ[name] = text


FAULTS: dict[str, Callable[[str], None]] = {
    "die-at": _die_at,
    "clock": _clock,
    "database": _database,
    "descriptors": _descriptors,
    "environment": _environment,
    "blind": _blind,
}
