"""A check, and how it crosses from one process to another."""

import json

import pytest

from lectern_common.checks.check import Check, Outcome
from lectern_common.errors import InvalidSpec, LecternError, Misconfigured, TeacherError


@pytest.mark.parametrize(
    "error",
    [Misconfigured("too little"), TeacherError("no answer"), InvalidSpec([("data.path", "gone")])],
)
def test_a_failed_check_of_another_process_is_the_same_error(error: LecternError) -> None:
    sent = json.loads(json.dumps(Check.failed("memory", error).as_json()))
    assert sent == {
        "subject": "memory",
        "outcome": "fail",
        "message": str(error),
        "advice": "",
        "reason": error.reason,
    }
    read = Check.of_json(sent)
    assert read.error is not None
    assert (type(read.error), str(read.error)) == (type(error), str(error))
    assert (read.subject, read.outcome, read.message) == ("memory", Outcome.FAIL, str(error))


@pytest.mark.parametrize("outcome", Outcome)
def test_a_check_without_an_error_is_read_as_it_was(outcome: Outcome) -> None:
    check = Check("disk", outcome, "2 GiB free", "free some")
    assert Check.of_json(json.loads(json.dumps(check.as_json()))) == check
