"""The error tree: every class travels over gRPC and HTTP and comes back as itself."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import NamedTuple

import grpc
import pytest

from lectern_common import errors
from lectern_common.teacher_channel import FIELD_KEY, PUSHBACK_KEY, REASON_KEY, translated


def tree(root: type[errors.LecternError] = errors.LecternError) -> Iterator[type]:
    """The errors of errors.py; what other packages derive for themselves crosses no boundary."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


class Entry(NamedTuple):
    key: str
    value: str


class FailedCall(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str, trailing: list[Entry]) -> None:
        self._parts = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> list[Entry]:
        return self._parts[2]


@pytest.mark.parametrize("error", list(tree()), ids=lambda error: error.__name__)
def test_every_error_names_valid_codes(error: type[errors.LecternError]) -> None:
    assert error.grpc_code in grpc.StatusCode.__members__
    assert error.grpc_code != "OK"
    assert HTTPStatus(error.http_status) >= 400
    assert 0 < error.exit_code < 126


def test_reasons_tell_errors_apart() -> None:
    reasons = [error.reason for error in tree()]
    assert len(set(reasons)) == len(reasons)


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for error in tree():
        assert error.__name__ in drawn


@pytest.mark.parametrize(
    "error",
    [
        error
        for error in tree(errors.LecternError)
        if error
        not in (
            errors.LecternError,
            errors.InvalidSpec,
            errors.Diverged,
            errors.DiskFull,
            errors.DiskStalled,
        )
    ],
    ids=lambda error: error.__name__,
)
def test_an_error_comes_back_from_the_wire_as_itself(error: type[errors.LecternError]) -> None:
    trailing = [Entry(REASON_KEY, error.reason), Entry(FIELD_KEY, "f"), Entry(PUSHBACK_KEY, "250")]
    back = translated(
        FailedCall(grpc.StatusCode[error.grpc_code], "the sentence", trailing), "host:1"
    )
    assert type(back) is error
    assert str(back) == "the sentence"
    if isinstance(back, errors.InvalidRequest):
        assert back.field == "f"
    if isinstance(back, errors.Overloaded):
        assert back.retry_after_seconds == 0.25


@pytest.mark.parametrize(
    ("code", "expected", "word"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.TeacherUnavailable, "lectern teacher serve"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.TeacherUnavailable, "in time"),
        (grpc.StatusCode.UNIMPLEMENTED, errors.TeacherError, "not a Lectern teacher"),
        (grpc.StatusCode.INTERNAL, errors.TeacherUnavailable, "broke (INTERNAL"),
        (grpc.StatusCode.UNKNOWN, errors.TeacherUnavailable, "broke (UNKNOWN"),
        (grpc.StatusCode.PERMISSION_DENIED, errors.TeacherError, "PERMISSION_DENIED"),
    ],
)
def test_a_bare_status_gets_a_sentence_with_the_address(
    code: grpc.StatusCode, expected: type, word: str
) -> None:
    back = translated(FailedCall(code, "d", []), "host:1")
    assert type(back) is expected
    assert word in str(back) and "host:1" in str(back)


def test_a_fault_of_the_teacher_itself_is_not_asked_again() -> None:
    trailing = [Entry(REASON_KEY, "internal")]
    back = translated(FailedCall(grpc.StatusCode.INTERNAL, "a fault", trailing), "host:1")
    assert type(back) is errors.TeacherError
