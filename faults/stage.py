"""What a row works with: scratch folders, servers, and whether it is sabotaged."""

import contextlib
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults.processes import Server
from faults.trainer.runs.forked import ForkServer

_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Progress:
    """Shows progress on standard error: in place on a terminal, else now and then."""

    row_id: str = ""
    _said: float = field(default=0.0, init=False)

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{self.row_id}  {text}")
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            sys.stderr.write(f"{self.row_id}  ... {text}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@dataclass
class Stage:
    """One row's surroundings.

    Attributes:
        row_id: id of the row.
        folder: the row's own scratch folder.
        shared: scratch folder shared by all rows.
        quick: fewer tries.
        sabotaged: the row's protection is off in every process that it starts.
        say: progress.
        fork_server: starts trainers without seconds of imports; shared by all rows.
        planes: starts control planes without a second of imports; shared by all rows.
    """

    row_id: str
    folder: Path
    shared: Path
    quick: bool
    sabotaged: bool
    say: Progress
    fork_server: ForkServer
    planes: ForkServer
    _numbers: Iterator[int] = field(default_factory=itertools.count, init=False)

    def tries(self, full: int, quick: int) -> int:
        """Returns how often to try."""
        return quick if self.quick else full

    @property
    def sabotage(self) -> str | None:
        """The row whose protection is off, or None."""
        return self.row_id if self.sabotaged else None

    def new_folder(self) -> Path:
        """Returns an empty folder."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    @contextlib.contextmanager
    def server(self, *options: str, faults: tuple[str, ...] = ()) -> Iterator[Server]:
        """Yields a ready teacher server, and ends it. See Server."""
        server = Server(self.new_folder(), options, faults, self.sabotage)
        try:
            yield server.ready()
        finally:
            server.kill()
