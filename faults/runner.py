"""Tries rows one after another and judges them.

A slow server is slow every time; a busy machine is not. So a row that missed only a time limit is
tried again.
"""

import contextlib
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from faults.control.plane import MODULES
from faults.processes import ROOT, environment
from faults.row import Result, Row, Tally
from faults.stage import Progress, Stage
from faults.trainer.runs.forked import ForkServer

# Attempts at a row that was only too slow.
ATTEMPTS = 3


def run_rows(
    rows: Iterable[Row], *, quick: bool = False, sabotage: str | None = None
) -> Iterator[Result]:
    """Yields the result of each row once it is known.

    Args:
        rows: tried in this order.
        quick: fewer tries.
        sabotage: id of the row whose protection is switched off.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lectern-faults-") as scratch,
        contextlib.ExitStack() as stack,
    ):
        shared = Path(scratch) / "shared"
        shared.mkdir()
        fork_server = ForkServer(Path(scratch) / "forked", environment(), ROOT)
        stack.callback(fork_server.close)
        planes = ForkServer(Path(scratch) / "planes", environment(), ROOT, modules=MODULES)
        stack.callback(planes.close)
        for row in rows:
            if (why := row.why_not()) is not None:
                yield Result(row, Tally(), 0.0, skipped=why)
                continue
            for attempt in range(1, ATTEMPTS + 1):
                folder = Path(scratch) / f"{row.id}-{attempt}"
                folder.mkdir()
                say = Progress(row.id)
                say(row.title)
                sabotaged = row.id == sabotage
                stage = Stage(row.id, folder, shared, quick, sabotaged, say, fork_server, planes)
                result = judged(row, stage, attempt)
                if stage.sabotaged or not result.tally.only_late:
                    break
            yield result


def judged(row: Row, stage: Stage, attempt: int = 1) -> Result:
    """Returns the result of a row; a check that breaks counts as missed."""
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
