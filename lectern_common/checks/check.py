"""One checked thing and its verdict: what preflight, `lectern doctor` and a dry run all find."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lectern_common.errors import LecternError, error_of


class Outcome(StrEnum):
    """What a check came to."""

    PASS = "pass"  # noqa: S105 - an outcome, no password
    WARN = "warn"  # it may work; the message or the advice says what to change if it does not
    FAIL = "fail"  # it cannot work; the message or the advice says what to change
    SKIP = "skip"  # cannot be known here; the message says who finds out


@dataclass(frozen=True)
class Check:
    """One checked subject.

    Attributes:
        subject: "data", "student", "teacher", "gpu", ...
        outcome: the verdict.
        message: one sentence that says what was found.
        advice: what to do, if the message does not say it.
        error: why it failed, to be raised by those who stop at the first failed check. None unless
            an error of errors.py is the reason.
    """

    subject: str
    outcome: Outcome
    message: str
    advice: str = ""
    error: LecternError | None = None

    @classmethod
    def failed(cls, subject: str, error: LecternError) -> "Check":
        """Returns the failed check of an error."""
        return cls(subject, Outcome.FAIL, str(error), error=error)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "Check":
        """Returns the check that `as_json` of another process described."""
        reason, message = value.get("reason"), value["message"]
        return cls(
            value["subject"],
            Outcome(value["outcome"]),
            message,
            value.get("advice", ""),
            None if reason is None else error_of(reason, message),
        )

    def as_json(self) -> dict[str, str | None]:
        """Returns what every command prints of a check; `reason` is the error's word, or None."""
        return {
            "subject": self.subject,
            "outcome": self.outcome,
            "message": self.message,
            "advice": self.advice,
            "reason": None if self.error is None else self.error.reason,
        }
