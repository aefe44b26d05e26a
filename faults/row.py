"""What a row of the table is, and what it found out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faults.stage import Stage


@dataclass
class Tally:
    """Counts of one row while it is tried.

    Attributes:
        tries: how often the fault was put to it.
        survived: how often it did what is required.
        misses: what it did instead, one sentence each; any of them fails the row.
        late: what it did, but not in time; fails the row too. The machine may have been busy with
            something else, so the runner tries a row again that has no other miss.
        figure: what was measured, for people.
    """

    tries: int = 0
    survived: int = 0
    misses: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    figure: str = ""

    def count(self, survived: bool, otherwise: str, tries: int = 1) -> bool:
        """Counts one try, or several; `otherwise` says what is wrong where it did not survive."""
        self.tries += tries
        if survived:
            self.survived += tries
        else:
            self.misses.append(otherwise)
        return survived

    def require(self, holds: bool, otherwise: str) -> None:
        """Notes a miss of the row as a whole where something does not hold."""
        if not holds:
            self.misses.append(otherwise)

    def require_within(self, seconds: float, limit_seconds: float, what: str) -> None:
        """Notes that `what` took longer than it may."""
        if seconds > limit_seconds:
            self.late.append(
                f"{what} took {1000 * seconds:.0f} ms; it may take {1000 * limit_seconds:.0f}"
            )

    @property
    def only_late(self) -> bool:
        """Is a time limit all that was missed?"""
        return bool(self.late) and not self.misses and 0 < self.tries == self.survived

    @property
    def passed(self) -> bool:
        """Was it tried, and was nothing missed?"""
        return 0 < self.tries == self.survived and not self.misses and not self.late


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        id: as T5.
        title: the fault, and what must happen.
        protection: what keeps the server or the trainer from it; `--sabotage` takes it away.
        check: puts the fault to real processes and returns what came of it.
    """

    id: str
    title: str
    protection: str
    check: Callable[["Stage"], Tally]


@dataclass(frozen=True)
class Result:
    """What a row came to."""

    row: Row
    tally: Tally
    seconds: float
    attempts: int = 1
    broke: bool = False  # the check itself: it says nothing of what it checks

    @property
    def passed(self) -> bool:
        return self.tally.passed

    def line(self) -> str:
        """Returns it as one line: id, tries, survived, figure; below it what was missed."""
        verdict = "ok  " if self.passed else "MISS"
        what = self.tally.figure if self.passed else self.row.title
        counts = f"{self.tally.survived}/{self.tally.tries}"
        text = f"{self.row.id:<4} {verdict} {counts:>13}  {what}"
        if self.attempts > 1:
            text += f" (attempt {self.attempts})"
        wrong = [*self.tally.misses, *self.tally.late]
        lines = [f"\n       {shorten(miss, 160, placeholder='...')}" for miss in wrong[:3]]
        more = f"\n       and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return text + "".join(lines) + more

    def as_json(self) -> dict[str, Any]:
        """Returns it for programs."""
        return {
            "id": self.row.id,
            "title": self.row.title,
            "tries": self.tally.tries,
            "survived": self.tally.survived,
            "figure": self.tally.figure,
            "passed": self.passed,
            "misses": [*self.tally.misses, *self.tally.late],
            "attempts": self.attempts,
            "broke": self.broke,
            "seconds": round(self.seconds, 1),
        }
