"""Whether the control plane can do its work now, and which part of it cannot."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from control_plane.runs.store import Store

RECONCILE_LOOP, DATABASE, DISK = "reconcile_loop", "database", "disk"
LOOK_SECONDS = 15.0  # a look at the runs that takes longer than this hangs
PROBE_SECONDS = 1.0  # between two probes of database and disk: anyone may ask
_PROBE_BYTES = 256 * 1024


class Readiness:
    """Tells which parts are broken. The loop reports here; database and disk are tried.

    Args:
        store: tried with a write that is rolled back.
        folder: runs root, tried with a small file.
        monotonic: seconds that never go back.
    """

    def __init__(
        self, store: Store, folder: Path, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._folder = folder
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._succeeded_at = monotonic()
        self._look_problem: str | None = "it has not yet looked at the runs"
        self._probed_at = float("-inf")
        self._probed: dict[str, str] = {}

    def looked(self, problem: str | None = None) -> None:
        """Records that a look at the runs has ended, and what was wrong with it."""
        self._looked_at, self._look_problem = self._monotonic(), problem
        if problem is None:
            self._succeeded_at = self._looked_at

    def look_age_seconds(self) -> float:
        """Returns how long ago the last look at the runs was that succeeded."""
        return self._monotonic() - self._succeeded_at

    def problems(self) -> dict[str, str]:
        """Returns what is wrong, by part; an empty mapping if nothing is."""
        found = {}
        silent = self._monotonic() - self._looked_at
        if self._look_problem is not None:
            found[RECONCILE_LOOP] = self._look_problem
        elif silent > LOOK_SECONDS:
            found[RECONCILE_LOOP] = f"it has not looked at the runs for {silent:.0f} s"
        return {**found, **self._probe()}

    def _probe(self) -> dict[str, str]:
        with self._lock:
            if self._monotonic() - self._probed_at >= PROBE_SECONDS:
                problems = {DATABASE: self._database_problem(), DISK: self._disk_problem()}
                self._probed = {part: why for part, why in problems.items() if why is not None}
                self._probed_at = self._monotonic()
            return self._probed

    def _database_problem(self) -> str | None:
        try:
            self._store.try_write()
        except sa.exc.SQLAlchemyError as error:
            return f"it cannot be written: {getattr(error, 'orig', None) or error}"
        return None

    def _disk_problem(self) -> str | None:
        try:
            with tempfile.TemporaryFile(dir=self._folder, prefix=".ready-") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return f"cannot write in {self._folder}: {error.strerror}"
        return None
