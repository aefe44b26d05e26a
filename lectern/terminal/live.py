"""The live display of runs: a table with loss curves on a terminal, plain lines elsewhere.

Used by `lectern train` (from the run folder), `lectern runs watch` and the demo (over REST).
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lectern.console import inert, out
from lectern.terminal.pace import Pace
from lectern.terminal.tables import condition, message_of
from lectern_common.run.status import RunState, Status
from lectern_common.words import duration

if TYPE_CHECKING:
    from rich.console import Group

    from lectern.client import RunStatus

MAX_CURVE_WIDTH = 60
MAX_CURVE_POINTS = 512
LINE_SECONDS = 10.0
_BLOCKS = "".join(chr(0x2581 + height) for height in range(8))
_ASCII_BLOCKS = "_.-=+*#%"
_COLORS = {
    RunState.RUNNING: "green",
    RunState.SUCCEEDED: "bold green",
    RunState.FAILED: "bold red",
    RunState.INTERRUPTED: "yellow",
    RunState.WAITING_FOR_TEACHER: "yellow",
}


@dataclass
class Curve:
    """One metric over the steps, thinned to at most MAX_CURVE_POINTS by dropping every other."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    last: float | None = None
    _stride: int = 1
    _seen: int = 0

    def add(self, step: int, value: float | None) -> None:
        """Adds the next value; None (it was not finite) adds no point.

        A step that is not above the last one means that the run went back to a checkpoint: the
        points from that step on are dropped.
        """
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.last = value
        if value is None or not math.isfinite(value):
            return
        if self._seen % self._stride == 0:
            self.steps.append(step)
            self.values.append(value)
        self._seen += 1
        if len(self.values) > MAX_CURVE_POINTS:
            self.steps, self.values = self.steps[::2], self.values[::2]
            self._stride *= 2


@dataclass
class LiveRun:
    """What is shown of one run. `curves` are keyed by metric name; only `CURVES` are kept."""

    run_id: str
    state: RunState = RunState.QUEUED
    reason: str | None = None
    message: str | None = None
    condition: str = ""  # what is wrong, although the state does not show it
    step: int = 0
    steps: int = 0
    device: str | None = None
    tokens_per_second: float | None = None
    teacher_wait_share: float | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    metrics_cursor: str | None = None  # over REST: where the next records start
    pace: Pace = field(default_factory=Pace)

    CURVES = ("loss/total", "loss/ce", "loss/kd", "loss/val")

    def show_status(self, status: Status) -> None:
        """Updates from the status that the trainer wrote."""
        seconds = status.stalled_seconds
        stalled = None if seconds is None else status.heartbeat - seconds
        self.condition = condition({"stalled_since": stalled, "activity": status.activity})
        self._show(status, status.message)

    def show_run(self, run: "RunStatus") -> None:
        """Updates from the control plane's answer."""
        self.condition = inert(condition(run.json))
        self._show(run, message_of(run))

    def add_metrics(self, records: Sequence[dict[str, Any]]) -> None:
        """Adds further metric records, in step order."""
        for record in records:
            step = int(record["step"])
            for name in self.CURVES:
                if name in record:
                    self.curves.setdefault(name, Curve()).add(step, record[name])

    def last(self, name: str) -> float | None:
        """Returns the last value of a metric, None if there is none or it was not finite."""
        curve = self.curves.get(name)
        return None if curve is None else curve.last

    @property
    def time_left(self) -> str:
        """Returns "3 min left" at the pace so far, "" if unknown."""
        seconds = self.pace.seconds_left(self.steps)
        return "" if seconds is None else f"{duration(seconds / 3600)} left"

    def line(self) -> str:
        """Returns one line of plain text."""
        parts = [self.run_id, str(self.state), f"step {self.step}/{self.steps}"]
        for name in self.CURVES:
            value = self.last(name)
            if value is not None:
                parts.append(f"{name} {value:.4f}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.teacher_wait_share is not None:
            parts.append(f"teacher wait {self.teacher_wait_share:.0%}")
        if self.time_left:
            parts.append(self.time_left)
        if self.condition:
            parts.append(self.condition)
        if self.state is not RunState.RUNNING:
            is_news = self.reason and self.reason != str(self.state)
            reason = f"({self.reason})" if is_news else ""
            parts += [part for part in (f"{reason} {self.message or ''}".strip(),) if part]
        return "  ".join(parts)

    def _show(self, source: "Status | RunStatus", message: str | None) -> None:
        self.state = RunState(source.state)
        self.reason = source.reason
        self.message = inert(message) if message else None
        self.step = source.step
        self.steps = source.steps
        self.device = source.device
        self.tokens_per_second = source.tokens_per_second
        self.teacher_wait_share = source.teacher_wait_share
        if self.state is RunState.RUNNING:
            self.pace.saw(self.step, time.monotonic())
        else:
            self.pace.stands_still()


def sparkline(
    values: Sequence[float], width: int = MAX_CURVE_WIDTH, *, ascii_only: bool = False
) -> str:
    """Returns at most `width` characters, each the mean of its share of `values`, scaled from the
    lowest mean to the highest.
    """
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    if not values:
        return ""
    count = min(width, len(values))
    means = []
    for index in range(count):
        share = values[index * len(values) // count : (index + 1) * len(values) // count]
        means.append(sum(share) / len(share))
    low, high = min(means), max(means)
    if high == low:
        return blocks[0] * count
    # Divided first: the inverse of a tiny range overflows.
    return "".join(blocks[round((mean - low) / (high - low) * (len(blocks) - 1))] for mean in means)


def drawing(views: Sequence[LiveRun], title: str | None = None, width: int = 80) -> "Group":
    """Renders the runs for a Rich display of `width` columns: a table with a row each, then their
    loss curves, then the messages of the runs that are not training.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "kd", "val", "tok/s", "wait"):
        table.add_column(name, justify="right", no_wrap=True)
    for view in views:
        table.add_row(
            Text(view.run_id),
            Text(str(view.state), style=_COLORS.get(view.state, "")),
            f"{view.step}/{view.steps}",
            _number(view.last("loss/total")),
            _number(view.last("loss/kd")),
            _number(view.last("loss/val")),
            "" if view.tokens_per_second is None else f"{view.tokens_per_second:,.0f}",
            "" if view.teacher_wait_share is None else f"{view.teacher_wait_share:.0%}",
        )
    curves = [Text(line, no_wrap=True, overflow="crop") for line in _curve_lines(views, width)]
    said = [
        Text(f"{view.run_id}: {said}")
        for view in views
        if (said := view.condition or (view.message if view.state is not RunState.RUNNING else ""))
    ]
    return Group(table, *curves, *said)


def _curve_lines(views: Sequence[LiveRun], width: int) -> Iterator[str]:
    """Yields a line for each run that has a loss: id, curve, first value -> last, time left."""
    ascii_only = not _can_draw_blocks()
    label = max((len(view.run_id) for view in views), default=0)
    for view in views:
        values = view.curves.get("loss/total", Curve()).values
        if values:
            ends = f"{values[0]:.3f} -> {values[-1]:.3f}"
            if view.time_left:
                ends += f", {view.time_left}"
            room = max(8, min(MAX_CURVE_WIDTH, width - label - len(ends) - 4))
            curve = sparkline(values, room, ascii_only=ascii_only)
            yield f"{view.run_id:<{label}}  {curve}  {ends}"


@contextmanager
def display(title: str | None = None) -> Iterator[Callable[[Sequence[LiveRun]], None]]:
    """Yields a function that shows the current state of runs; call it as often as you like.

    On a terminal it redraws a table, whose last state stays. Elsewhere it prints a line when a
    run's state changes, when it stalls or goes on, and when what it waits for changes; and at most
    one every LINE_SECONDS while its step changes.
    """
    terminal = out()
    if not terminal.is_terminal:
        yield _LinePrinter().show
        return
    from rich.live import Live

    with Live(console=terminal, refresh_per_second=4) as live:
        yield lambda views: live.update(drawing(views, title, terminal.width))


@contextmanager
def nothing() -> Iterator[Callable[[Sequence[LiveRun]], None]]:
    """Like `display`, but shows nothing."""
    yield lambda views: None


class _LinePrinter:
    def __init__(self) -> None:
        self._shown: dict[str, tuple[tuple[RunState, bool, str | None], int, float]] = {}

    def show(self, views: Sequence[LiveRun]) -> None:
        now = time.monotonic()
        for view in views:
            # What a run waits for may change while it is queued or interrupted.
            can_wait = view.state in (RunState.QUEUED, RunState.INTERRUPTED)
            waits = view.message if can_wait else None
            now_is = (view.state, bool(view.condition), waits)
            before, step, when = self._shown.get(view.run_id, (None, -1, 0.0))
            if now_is != before or (view.step != step and now - when >= LINE_SECONDS):
                self._shown[view.run_id] = (now_is, view.step, now)
                print(view.line(), flush=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _can_draw_blocks() -> bool:
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
