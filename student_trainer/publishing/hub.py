"""Calls to the model hub through huggingface_hub, with its errors in this repository's words."""

import errno
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from lectern_common.errors import (
    Conflict,
    DiskFull,
    HubUnavailable,
    LecternError,
    Misconfigured,
    NotFound,
    Unauthenticated,
)
from lectern_common.stages.status import Report
from student_trainer.stop import Stop, StopRequested

_GIT_ATTRIBUTES = ".gitattributes"  # the hub writes it by itself
_MESSAGE = "Publish a student distilled with Lectern"
# Statuses of a hub that may answer later.
_LATER = (408, 425, 429, 500, 502, 503, 504)
_REFUSED = (401, 403)


def fetched(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Returns a folder with some files of a model on the hub, or of its copy in the hub's cache.

    Raises:
        HubUnavailable: the hub does not answer, and there is no copy.
        NotFound: the hub shows no such model.
    """
    with _in_our_words(f"reading {name}"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))


def require_token() -> None:
    """Raises Unauthenticated if there is no token for the hub on this machine."""
    if get_token() is None:
        raise Unauthenticated(
            "the model hub needs a token that may write: set HF_TOKEN, or run `hf auth login`"
        )


def opened(repository: str, *, private: bool, planned: set[str]) -> None:
    """Creates a repository on the hub; an existing one must fit the plan.

    Args:
        repository: OWNER/NAME.
        private: whether only its owner may see it.
        planned: the files that will be in it.

    Raises:
        Conflict: it exists, and is not as private, or has files that are not planned.
        LecternError: the hub refuses, or does not answer.
    """
    with _in_our_words(f"creating {repository}"):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.model_info(repository)
        if bool(info.private) != private:
            is_now = "private" if info.private else "public"
            raise Conflict(
                f"{repository} exists and is {is_now}: "
                f"{'leave --private out' if private else 'set --private'}, change it on the hub, "
                "or choose another name"
            )
        there = {sibling.rfilename for sibling in info.siblings or ()} - {_GIT_ATTRIBUTES}
    if there - planned:
        raise Conflict(
            f"{repository} exists and has files that are not in the plan "
            f"({', '.join(sorted(there - planned)[:5])}): delete them there, or choose another name"
        )


def uploaded(
    repository: str, files: Mapping[str, Path | bytes], *, stop: Stop, report: Report
) -> str:
    """Uploads files as one commit; returns its id. Files that are there already are not sent again.

    Args:
        repository: OWNER/NAME.
        files: name -> content, or the file that holds it.
        stop: ends it within a part of a file.
        report: told how many bytes of files are sent.

    Raises:
        StopRequested: a stop was requested; nothing has changed there.
        LecternError: the hub refuses, or does not answer: nothing has changed there.
    """
    with ExitStack() as stack, _in_our_words(f"uploading to {repository}"):
        sent = _Sent(stop, report)
        contents = {
            name: content
            if isinstance(content, bytes)
            else stack.enter_context(_WatchedFile(content, sent))
            for name, content in files.items()
        }
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        sent.begin()
        commit = HfApi().create_commit(repository, operations, commit_message=_MESSAGE)
        return str(commit.oid)


def downloaded(repository: str, commit: str, target: Path, *, stop: Stop, report: Report) -> Path:
    """Downloads all files of a commit into a new folder, which it returns.

    Raises:
        StopRequested: a stop was requested.
        LecternError: the hub refuses, or does not answer.
    """
    with _in_our_words(f"downloading {repository}"):
        info = HfApi().model_info(repository, revision=commit)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        for done, name in enumerate(names):
            stop.check()
            report("files downloaded", done, len(names))
            # Files of an earlier commit in the hub's cache would prove nothing.
            hf_hub_download(repository, name, revision=commit, local_dir=target)
    return target


class _Sent:
    """How many bytes were read to be sent, by several threads; those that are sent again count
    once more.
    """

    def __init__(self, stop: Stop, report: Report) -> None:
        self._stop, self._report = stop, report
        self._total = self._done = 0
        self._has_begun = False
        self._lock = threading.Lock()

    def expect(self, num_bytes: int) -> None:
        self._total += num_bytes

    def begin(self) -> None:
        """What was read until now was only hashed."""
        self._has_begun = True

    def add(self, num_bytes: int) -> None:
        """Raises StopRequested if a stop was requested."""
        self._stop.check()
        if self._has_begun:
            with self._lock:
                self._done = min(self._done + num_bytes, self._total)
                self._report("bytes sent", self._done, self._total)


class _WatchedFile(io.BufferedReader):
    """A file that is uploaded. Only files given as such are always sent over LFS, never Xet."""

    def __init__(self, path: Path, sent: _Sent) -> None:
        super().__init__(io.FileIO(path))
        self._sent = sent
        sent.expect(path.stat().st_size)

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._sent.add(len(data))
        return data


@contextmanager
def _in_our_words(doing: str) -> Iterator[None]:
    where = constants.ENDPOINT
    try:
        yield
    except (LecternError, StopRequested):
        raise
    except OfflineModeIsEnabled:
        raise Misconfigured(f"{doing} needs the hub: unset HF_HUB_OFFLINE") from None
    except GatedRepoError:
        raise Unauthenticated(
            f"{doing}: the model is gated; ask for access on its page, and set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise NotFound(
            f"{doing}: {where} shows no such repository; correct its name, or set HF_TOKEN to a "
            "token that may see it"
        ) from None
    except Exception as error:
        raise _translated(error, doing, where) from error


def _translated(error: Exception, doing: str, where: str) -> LecternError:
    """Returns the error of ours; huggingface_hub wraps what goes wrong in a thread.

    Raises:
        StopRequested: that is what went wrong.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, StopRequested):
            raise cause
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(f"{doing}: no space left; free some, then run the same again")
    for cause in causes:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status, said = cause.response.status_code, _first_line(cause)
            if status in _REFUSED:
                return Unauthenticated(
                    f"{doing}: {where} refuses ({said}); set HF_TOKEN to a token that may write"
                )
            if status == 409:
                return Conflict(f"{doing}: {said}")
            if status not in _LATER:
                return LecternError(f"{doing}: {where} answered {status}: {said}")
            return HubUnavailable(f"{doing}: {where} answered {status}; run the same again later")
    if isinstance(error, LocalEntryNotFoundError) or any(map(_is_lost, causes)):
        return HubUnavailable(
            f"{doing}: {where} cannot be reached, or the connection broke "
            f"({_first_line(causes[-1])}); check the network and HF_ENDPOINT, then run the same "
            "again"
        )
    return LecternError(f"{doing}: {_first_line(error)}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_lost(error: BaseException) -> bool:
    """Whether a connection failed: httpx's errors, of whichever release huggingface_hub brings."""
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__name__ == "TransportError" for kind in type(error).__mro__
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
