"""The error tree: every class travels over gRPC and HTTP and comes back as itself."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NamedTuple

import grpc
import httpx
import pytest

from control_plane.api import problems
from lectern import client
from lectern_common import errors
from lectern_common.teacher.channel import FIELD_KEY, PUSHBACK_KEY, REASON_KEY, translated


def tree(
    root: type[errors.LecternError] = errors.LecternError,
) -> Iterator[type[errors.LecternError]]:
    """The errors of errors.py; subclasses in other packages cross no boundary."""
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

    def trailing_metadata(self) -> Any:
        return self._parts[2]


@pytest.mark.parametrize("error", list(tree()), ids=lambda error: error.__name__)
def test_every_error_names_valid_codes(error: type[errors.LecternError]) -> None:
    assert error.grpc_code in grpc.StatusCode.__members__
    assert error.grpc_code != "OK"
    assert HTTPStatus(error.http_status) >= 400
    assert 0 < error.exit_code < 126


def test_every_error_has_its_own_reason() -> None:
    reasons = [error.reason for error in tree()]
    assert len(set(reasons)) == len(reasons)


def test_the_tree_in_the_docstring_is_the_class_tree() -> None:
    drawn = errors.__doc__ or ""
    for error in tree():
        assert error.__name__ in drawn


# What a teacher says of itself comes back by its status instead.
BY_STATUS = {
    errors.LecternError: errors.TeacherError,
    errors.InvalidSpec: errors.TeacherError,
    errors.Diverged: errors.TeacherError,
    errors.DiskFull: errors.TeacherError,
    errors.DiskStalled: errors.TeacherError,
}


@pytest.mark.parametrize("error", list(tree()), ids=lambda error: error.__name__)
def test_an_error_comes_back_from_the_wire_as_itself(error: type[errors.LecternError]) -> None:
    trailing = [Entry(REASON_KEY, error.reason), Entry(FIELD_KEY, "f"), Entry(PUSHBACK_KEY, "250")]
    back = translated(
        FailedCall(grpc.StatusCode[error.grpc_code], "the sentence", trailing), "host:1"
    )
    assert type(back) is BY_STATUS.get(error, error)
    if error in BY_STATUS:
        assert str(back) == f"the teacher at host:1 answered {error.grpc_code}: the sentence"
        return
    assert str(back) == "the sentence"
    if isinstance(back, errors.InvalidRequest):
        assert back.field == "f"
    if isinstance(back, errors.Overloaded):
        assert back.retry_after_seconds == 0.25


def test_a_full_teacher_without_a_retry_time_is_retried_after_a_second() -> None:
    trailing = [Entry(REASON_KEY, "overloaded")]
    back = translated(FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailing), "host:1")
    assert isinstance(back, errors.Overloaded) and back.retry_after_seconds == 1.0


@pytest.mark.parametrize("error", list(tree()), ids=lambda error: error.__name__)
def test_an_error_comes_back_from_http_as_itself(error: type[errors.LecternError]) -> None:
    raised = errors.error_of(error.reason, "the sentence")
    answer = problems.of_error(raised)
    assert answer.status_code == error.http_status

    back = client.problem(
        httpx.Response(
            answer.status_code,
            content=bytes(answer.body),
            request=httpx.Request("GET", "http://lectern"),
        )
    )
    assert (type(back), str(back)) == (error, "the sentence")
    if isinstance(back, errors.InvalidSpec):
        assert back.problems == [("", "the sentence")]


@pytest.mark.parametrize("error", list(tree()), ids=lambda error: error.__name__)
def test_a_reason_comes_back_as_its_error(error: type[errors.LecternError]) -> None:
    back = errors.error_of(error.reason, "the sentence")
    assert (type(back), back.reason, str(back)) == (error, error.reason, "the sentence")


@pytest.mark.parametrize(("word", "kept"), [("teapot", "teapot"), ("", "internal")])
def test_an_unknown_reason_is_kept(word: str, kept: str) -> None:
    back = errors.error_of(word, "the sentence")
    assert (type(back), back.reason, str(back)) == (errors.LecternError, kept, "the sentence")
    assert errors.LecternError.reason == "internal"


def test_subclasses_of_other_modules_are_not_looked_up() -> None:
    child = client.ControlPlaneUnavailable.reason
    assert type(errors.error_of(child, "the sentence")) is errors.LecternError


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.TeacherUnavailable),
        (grpc.StatusCode.INTERNAL, errors.TeacherError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.TeacherError),
    ],
)
def test_the_status_decides_if_the_reason_is_unknown(code: grpc.StatusCode, expected: type) -> None:
    back = translated(FailedCall(code, "d", [Entry(REASON_KEY, "teapot")]), "host:1")
    assert type(back) is expected


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


def test_an_internal_fault_of_the_teacher_is_not_retried() -> None:
    trailing = [Entry(REASON_KEY, "internal")]
    back = translated(FailedCall(grpc.StatusCode.INTERNAL, "a fault", trailing), "host:1")
    assert type(back) is errors.TeacherError
