"""Tries rows one after the other and judges them.

A server that is too slow is so each time; a machine that was busy elsewhere is not. So a row that
missed nothing but a time limit is tried again.
"""

import contextlib
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from faults.processes import ROOT, environment
from faults.row import Result, Row, Tally
from faults.stage import Progress, Stage
from faults.trainer.runs.forked import ForkServer

# Of a row that did all it must, but not in time.
ATTEMPTS = 3


def run_rows(
    rows: Iterable[Row], *, quick: bool = False, sabotage: str | None = None
) -> Iterator[Result]:
    """Yields the result of each row as it is there.

    Args:
        rows: tried in this order.
        quick: fewer tries.
        sabotage: id of the row whose protection is off.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lectern-faults-") as scratch,
        contextlib.ExitStack() as stack,
    ):
        shared = Path(scratch) / "shared"
        shared.mkdir()
        fork_server = ForkServer(Path(scratch) / "forked", environment(), ROOT)
        stack.callback(fork_server.close)
        for row in rows:
            for attempt in range(1, ATTEMPTS + 1):
                folder = Path(scratch) / f"{row.id}-{attempt}"
                folder.mkdir()
                say = Progress(row.id)
                say(row.title)
                sabotaged = row.id == sabotage
                stage = Stage(row.id, folder, shared, quick, sabotaged, say, fork_server)
                result = judged(row, stage, attempt)
                if stage.sabotaged or not result.tally.only_late:
                    break
            yield result


def judged(row: Row, stage: Stage, attempt: int = 1) -> Result:
    """Returns what a row came to; a check that breaks has missed."""
    begun = time.monotonic()
    broke = False
    try:
        tally = row.check(stage)
    except Exception as error:
        broke = True
        tally = Tally(misses=[f"the check broke: {type(error).__name__}: {error}"])
        traceback.print_exc()
    stage.say.clear()
    return Result(row, tally, time.monotonic() - begun, attempt, broke)
