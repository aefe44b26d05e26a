"""A check and its outcome, as preflight, `lectern doctor` and a dry run report it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from lectern_common.errors import (
    CorruptData,
    InvalidRequest,
    InvalidSpec,
    LecternError,
    Misconfigured,
    NotFound,
    error_of,
)
from lectern_common.words import inert_name

_Looked = TypeVar("_Looked")


class Outcome(StrEnum):
    """The outcome of a check."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    WARN = "warn"  # it may work; the message or the advice says what to change if it does not
    FAIL = "fail"  # it cannot work; the message or the advice says what to change
    SKIP = "skip"  # cannot be checked here; the message says what checks it later


@dataclass(frozen=True)
class Check:
    """One checked subject.

    Attributes:
        subject: "data", "student", "teacher", "gpu", ...
        outcome: what the check came to.
        message: one sentence that says what was found.
        advice: what to do, if the message does not say it.
        error: why it failed, for callers that raise the first failure. None unless the reason is an
            error of errors.py.
    """

    subject: str
    outcome: Outcome
    message: str
    advice: str = ""
    error: LecternError | None = None

    def __str__(self) -> str:
        """Returns the message, with the advice if there is any."""
        return f"{self.message}; {self.advice}" if self.advice else self.message

    @classmethod
    def failed(cls, subject: str, error: LecternError) -> "Check":
        """Returns a failed check with this error."""
        return cls(subject, Outcome.FAIL, str(error), error=error)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "Check":
        """Returns the check that another process wrote with `as_json`."""
        reason, message = value.get("reason"), value["message"]
        return cls(
            value["subject"],
            Outcome(value["outcome"]),
            message,
            value.get("advice", ""),
            None if reason is None else error_of(reason, message),
        )

    def as_json(self) -> dict[str, str | None]:
        """Returns the check as commands print it; `reason` is the error's reason, or None."""
        return {
            "subject": self.subject,
            "outcome": self.outcome,
            "message": self.message,
            "advice": self.advice,
            "reason": None if self.error is None else self.error.reason,
        }


def checked(
    subject: str,
    look: Callable[[], tuple[_Looked, str]],
    nothing: _Looked,
    field: str | None = None,
) -> tuple[_Looked, Check]:
    """Returns what `look` found and the passed check, or `nothing` and the failed one.

    Args:
        subject: see Check.
        look: returns what it found, and the message.
        nothing: stands for what was not found.
        field: of the run spec that names what is looked at: a file that cannot be used is then an
            error of this field. None means that no spec names it.
    """
    try:
        found, message = look()
    except LecternError as error:
        return nothing, Check.failed(subject, error if field is None else _of_field(field, error))
    except OSError as error:
        what = "its files" if error.filename is None else inert_name(error.filename)
        sentence = f"cannot read {what}: {error.strerror}"
        failure = Misconfigured(sentence) if field is None else InvalidSpec([(field, sentence)])
        return nothing, Check.failed(subject, failure)
    return found, Check(subject, Outcome.PASS, message)


def _of_field(field: str, error: LecternError) -> LecternError:
    """Returns the error as one of a spec's field, unless it says itself whose it is."""
    if isinstance(error, CorruptData) and error.field is None:
        return type(error)(str(error), field)
    is_of_none = type(error) is InvalidRequest and error.field is None
    if is_of_none or isinstance(error, (NotFound, Misconfigured)):
        return InvalidSpec([(field, str(error))])
    return error
