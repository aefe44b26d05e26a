"""Printing: results go to standard output, everything else to standard error."""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lectern_common.errors import InvalidSpec, LecternError, by_message
from lectern_common.words import duration

if TYPE_CHECKING:
    from rich.console import Console

# Rich is imported only where something is drawn, so that `--json` and errors do not load it.

EXIT_CODES = {
    0: "done, or the run was stopped on request",
    1: "failed; the message says why",
    2: "wrong options, settings or spec, or the spec names something missing",
    3: "no such run, folder or file",
    4: "not possible in the current state",
    5: "missing or wrong token, or a TLS certificate that is not accepted",
    6: "teacher, student and data do not fit together",
    7: "the teacher or the control plane is unreachable or full; try again",
    8: "the teacher's answers cannot be used",
    75: "the run was interrupted and can be resumed unchanged",
    130: "ended by Ctrl-C",
}
INTERRUPTED_EXIT_CODE = 75
CTRL_C_EXIT_CODE = 130
PROGRESS_SECONDS = 30.0
PACE_SECONDS = 60.0


def out() -> "Console":
    """Returns the console of standard output."""
    from rich.console import Console

    return Console(soft_wrap=False)


def err() -> "Console":
    """Returns the console of standard error."""
    from rich.console import Console

    return Console(stderr=True)


def print_json(value: Any) -> None:
    """Prints JSON (never NaN) to standard output."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def note(message: str) -> None:
    """Prints a line about progress to standard error."""
    sys.stderr.write(inert(message) + "\n")
    sys.stderr.flush()


def inert(text: str) -> str:
    """Returns text that is safe on a terminal: unprintable characters become "?"."""
    return "".join(
        character if character.isprintable() or character in "\t\n" else "?" for character in text
    )


def print_error(error: LecternError) -> None:
    """Prints one error to standard error; a spec's problems field by field."""
    if isinstance(error, InvalidSpec):
        problems = by_message(error.problems)
        width = max(len(fields) for fields, _ in problems)
        lines = [f"  {fields:<{width}}  {message}".rstrip() for fields, message in problems]
        if len(lines) == 1:
            lines = [": ".join(part for part in problems[0] if part)]
        else:
            lines = [f"{len(lines)} problems in the run spec", *lines]
    else:
        lines = [str(error)]
    note(inert("error: " + "\n".join(lines)))


Advance = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is in all)."""


@contextmanager
def progress() -> Iterator[Advance]:
    """Yields a function that shows on standard error how far each stage of a long work is.

    A terminal gets bars, which disappear when the block ends; anything else gets a line every
    PROGRESS_SECONDS, also while nothing moves. Both say how fast it goes, and how long the stage
    takes at that rate.
    """
    console = err()
    if not console.is_terminal:
        with _progress_lines() as advance:
            yield advance
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=console, transient=True) as display:
        tasks: dict[str, Any] = {}
        pace = Pace()

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, pace="")
            words = pace.after(stage, done, total)
            display.update(tasks[stage], completed=done, total=total, pace=words)

        yield advance


class Pace:
    """How fast a stage goes, over the last PACE_SECONDS, and how long it will take.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = ""
        self._seen: deque[tuple[float, int]] = deque()

    def after(self, stage: str, done: int, total: int) -> str:
        """Returns such as "12.5/s, 3 min left"; "" while it is not known."""
        now = self._clock()
        if stage != self._stage:
            self._stage = stage
            self._seen.clear()
        while len(self._seen) > 1 and self._seen[0][0] < now - PACE_SECONDS:
            self._seen.popleft()
        self._seen.append((now, done))
        began, before = self._seen[0]
        if done <= before or now <= began:
            return ""
        rate = (done - before) / (now - began)
        shown = f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"
        return f"{shown}, {duration(max(0, total - done) / rate / 3600)} left"


@contextmanager
def _progress_lines() -> Iterator[Advance]:
    began = time.monotonic()
    last: list[str] = ["starting"]
    pace = Pace()
    ended = threading.Event()

    def advance(stage: str, done: int, total: int) -> None:
        share = f" ({done / total:.0%})" if total else ""
        words = pace.after(stage, done, total)
        last[0] = f"{stage}: {done:,} of {total:,}{share}" + (f", {words}" if words else "")

    def print_lines() -> None:
        while not ended.wait(PROGRESS_SECONDS):
            note(f"{last[0]}, after {duration((time.monotonic() - began) / 3600)}")

    thread = threading.Thread(target=print_lines, daemon=True, name="progress")
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()
