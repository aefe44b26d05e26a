"""Errors of the model hub, in this repository's words."""

import errno

import httpx
import pytest
from huggingface_hub import errors as theirs

from lectern_common.errors import (
    Conflict,
    DiskFull,
    HubUnavailable,
    LecternError,
    Misconfigured,
    NotFound,
    Unauthenticated,
)
from student_trainer.publishing import hub
from student_trainer.publishing.hub import _in_our_words, require_token


def answered(status: int, kind: type[theirs.HfHubHTTPError] = theirs.HfHubHTTPError) -> Exception:
    request = httpx.Request("POST", "http://hub.example/api")
    return kind("they said so", response=httpx.Response(status, request=request))  # type: ignore[arg-type]


def in_a_thread(error: Exception) -> Exception:
    """The form in which an upload's thread passes on what went wrong."""
    wrapped = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (answered(401), Unauthenticated, False),
        (answered(403), Unauthenticated, False),
        (answered(409), Conflict, False),
        (answered(400), LecternError, False),
        (answered(429), HubUnavailable, True),
        (answered(503), HubUnavailable, True),
        (in_a_thread(answered(500)), HubUnavailable, True),
        (in_a_thread(answered(403)), Unauthenticated, False),
        (answered(404, theirs.RepositoryNotFoundError), NotFound, False),
        (answered(403, theirs.GatedRepoError), Unauthenticated, False),
        (theirs.LocalEntryNotFoundError("nothing in the cache"), HubUnavailable, True),
        (theirs.OfflineModeIsEnabled("offline"), Misconfigured, False),
        (ConnectionResetError("reset"), HubUnavailable, True),
        (httpx.ConnectError("refused"), HubUnavailable, True),
        (httpx.ReadTimeout("slow"), HubUnavailable, True),
        (in_a_thread(httpx.RemoteProtocolError("cut off")), HubUnavailable, True),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, True),
        (in_a_thread(OSError(errno.EDQUOT, "quota")), DiskFull, True),
        (ValueError("malformed"), LecternError, False),
    ],
    ids=repr,
)
def test_each_error_of_the_hub_says_whose_fault_it_is(error, kind, retryable):
    with pytest.raises(LecternError) as ours, _in_our_words("publishing"):
        raise error
    assert type(ours.value) is kind
    assert ours.value.retryable is retryable
    assert "publishing" in str(ours.value)
    assert "\n" not in str(ours.value)


def test_an_error_of_ours_passes_through():
    with pytest.raises(Conflict, match="ours"), _in_our_words("publishing"):
        raise Conflict("ours")


def test_without_a_token_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(Unauthenticated, match="HF_TOKEN"):
        require_token()
