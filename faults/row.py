"""A row of the table, and its result."""

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
        tries: how often the fault was tried.
        survived: how often the required behaviour was seen.
        misses: what happened instead, one sentence each; any miss fails the row.
        late: what was too slow; fails the row too. The machine may have been busy, so the runner
            repeats a row without other misses.
        figure: what was measured, for people.
    """

    tries: int = 0
    survived: int = 0
    misses: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    figure: str = ""

    def count(self, survived: bool, otherwise: str, tries: int = 1) -> bool:
        """Counts one or more tries; `otherwise` is the miss if they did not survive."""
        self.tries += tries
        if survived:
            self.survived += tries
        else:
            self.misses.append(otherwise)
        return survived

    def require(self, holds: bool, otherwise: str) -> None:
        """Notes a miss of the whole row unless the condition holds."""
        if not holds:
            self.misses.append(otherwise)

    def require_within(self, seconds: float, limit_seconds: float, what: str) -> None:
        """Notes `what` as late if it took longer than the limit."""
        if seconds > limit_seconds:
            self.late.append(
                f"{what} took {1000 * seconds:.0f} ms; it may take {1000 * limit_seconds:.0f}"
            )

    @property
    def only_late(self) -> bool:
        """Whether time limits are all that was missed."""
        return bool(self.late) and not self.misses and 0 < self.tries == self.survived

    @property
    def passed(self) -> bool:
        """Whether it was tried and nothing was missed."""
        return 0 < self.tries == self.survived and not self.misses and not self.late


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        id: such as T5.
        title: the fault.
        protection: what protects against the fault; `--sabotage` switches it off.
        check: tries the fault on real processes and returns the counts.
        why_not: says why it cannot be tried on this machine; None if it can.
    """

    id: str
    title: str
    protection: str
    check: Callable[["Stage"], Tally]
    why_not: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Result:
    """The result of a row."""

    row: Row
    tally: Tally
    seconds: float
    attempts: int = 1
    broke: bool = False  # the check itself failed, which says nothing about the fault
    skipped: str | None = None  # why it was not tried

    @property
    def passed(self) -> bool:
        return self.tally.passed

    def line(self) -> str:
        """Returns it as one line: id, tries, survived, figure; misses below it."""
        if self.skipped is not None:
            return f"{self.row.id:<4} skip {'':>13}  {self.row.title}: {self.skipped}"
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
        """Returns it as a JSON object."""
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
            "skipped": self.skipped,
            "seconds": round(self.seconds, 1),
        }
