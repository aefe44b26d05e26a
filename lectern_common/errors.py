"""Every error that crosses a boundary: whose fault it is, whether to retry, and its codes.

Errors are raised deep in the code and translated once at the edge: by the gRPC servicer
(`grpc_code`), the HTTP exception handler (`http_status`) and the command line (`exit_code`).
`reason` is the stable word for programs, from which `error_of` rebuilds the error on the other
side.

    LecternError
    |-- InvalidRequest        the caller sent something that can never work; `field` names it
    |   `-- InvalidSpec       a run spec with invalid fields
    |-- NotFound              the named thing does not exist
    |-- Conflict              the current state does not allow the request
    |   `-- FolderMissing     what the run has written so far was removed
    |-- Unauthenticated       no token, or a wrong one
    |   |-- ReadOnlyToken     a token that does not allow this
    |   `-- Untrusted         TLS: one side does not trust the other
    |-- Incompatible          two parts are each valid, but do not fit together
    |   |-- TokenizerMismatch
    |   |-- SameWeights
    |   |-- WrongModel        the teacher serves a different model than the run started with
    |   `-- RepresentationNotOffered
    |-- Overloaded            full; the same request succeeds later
    |-- TeacherError          the teacher's answer is unusable
    |   `-- TeacherOutOfMemory
    |-- TeacherUnavailable    no answer from the teacher; the same request may succeed later
    |-- HubUnavailable        no answer from the model hub; the same request may succeed later
    |-- Diverged              loss, gradient or logits are no longer finite
    |-- CorruptData           stored bytes are not what was written
    |   `-- DataUnavailable   a run's data changed, or can no longer be read
    |-- DiskFull              no space left for a checkpoint or a record
    |   `-- DiskStalled       a write does not finish
    |-- BackendDown           the scheduler that runs go to does not answer
    |-- LaunchRefused         the scheduler will never start this
    `-- Misconfigured         this process cannot start with these settings; says what to set
"""


class LecternError(Exception):
    """Root of the tree. `str(error)` is one sentence that tells a person what to do next.

    Attributes:
        reason: stable machine-readable word.
        grpc_code: name of the `grpc.StatusCode` that carries it over the wire.
        http_status: HTTP status that carries it.
        exit_code: exit status of a command that ends with it.
        retryable: the identical request may succeed later.
    """

    reason = "internal"
    grpc_code = "INTERNAL"
    http_status = 500
    exit_code = 1
    retryable = False


class InvalidRequest(LecternError):
    """The caller's fault: `field` is the offending field; None means the whole request."""

    reason = "invalid_request"
    grpc_code = "INVALID_ARGUMENT"
    http_status = 422
    exit_code = 2

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidSpec(InvalidRequest):
    """A run spec that is not valid.

    Attributes:
        problems: (dotted field, message) pairs, at least one.
    """

    reason = "invalid_spec"

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(_problem_lines(problems)), field=problems[0][0] or None)
        self.problems = problems


def by_message(problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns (fields, message) pairs: neighbours that share a message, such as settings that do
    not fit together, become one, with their fields separated by commas.
    """
    found: list[tuple[list[str], str]] = []
    for field, message in problems:
        if found and found[-1][1] == message and field:
            found[-1][0].append(field)
        else:
            found.append(([field], message))
    return [(", ".join(fields), message) for fields, message in found]


def _problem_lines(problems: list[tuple[str, str]]) -> list[str]:
    return [
        f"{fields}: {message}" if fields else message for fields, message in by_message(problems)
    ]


class NotFound(LecternError):
    """The named run, dataset, model or file does not exist."""

    reason = "not_found"
    grpc_code = "NOT_FOUND"
    http_status = 404
    exit_code = 3


class Conflict(LecternError):
    """The current state does not allow the request."""

    reason = "conflict"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    exit_code = 4


class FolderMissing(Conflict):
    """The run's folder or its checkpoints were removed, so it has nothing to resume from."""

    reason = "folder_missing"


class Unauthenticated(LecternError):
    """The bearer token is missing or not accepted."""

    reason = "unauthenticated"
    grpc_code = "UNAUTHENTICATED"
    http_status = 401
    exit_code = 5


class ReadOnlyToken(Unauthenticated):
    """The bearer token may only read."""

    reason = "read_only_token"
    grpc_code = "PERMISSION_DENIED"
    http_status = 403


class Untrusted(Unauthenticated):
    """TLS fails: a certificate is not trusted, or only one side speaks TLS."""

    reason = "untrusted"


class Incompatible(LecternError):
    """Teacher, student and data are each valid, but do not fit together."""

    reason = "incompatible"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 422
    exit_code = 6


class TokenizerMismatch(Incompatible):
    """Token-to-id maps differ; the message names the first ids that do."""

    reason = "tokenizer_mismatch"


class SameWeights(Incompatible):
    """Student and teacher have the same weights, so there is nothing to distil."""

    reason = "same_weights"


class WrongModel(Incompatible):
    """The teacher at this address is not the model that was expected (fingerprints differ)."""

    reason = "wrong_model"


class RepresentationNotOffered(Incompatible):
    """The teacher does not offer the requested representation; the message has its reason."""

    reason = "representation_not_offered"


class Overloaded(LecternError):
    """The queue is full. Retry after `retry_after_seconds`."""

    reason = "overloaded"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 503
    exit_code = 7
    retryable = True

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class TeacherError(LecternError):
    """The teacher's answer cannot be used as targets (not finite, wrong checksum, wrong shape)."""

    reason = "teacher_error"
    grpc_code = "DATA_LOSS"
    http_status = 502
    exit_code = 8


class TeacherOutOfMemory(TeacherError):
    """A single sequence does not fit into the teacher's memory."""

    reason = "teacher_out_of_memory"
    grpc_code = "RESOURCE_EXHAUSTED"


class TeacherUnavailable(LecternError):
    """The teacher cannot be reached, or did not answer within the deadline or the outage budget."""

    reason = "teacher_unavailable"
    grpc_code = "UNAVAILABLE"
    http_status = 502
    exit_code = 7
    retryable = True


class HubUnavailable(LecternError):
    """The model hub cannot be reached, or a connection to it broke."""

    reason = "hub_unavailable"
    grpc_code = "UNAVAILABLE"
    http_status = 502
    exit_code = 7
    retryable = True


class Diverged(LecternError):
    """Loss, gradient or logits stopped being finite; the message says where a run can go on."""

    reason = "diverged"


class CorruptData(LecternError):
    """Stored bytes do not match their manifest, or a file is truncated.

    Attributes:
        field: of the run spec that names the files. A caller who named them can name others, so
            the error is then theirs (422); else None.
    """

    reason = "corrupt_data"
    grpc_code = "DATA_LOSS"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        if field is not None:
            self.http_status = InvalidRequest.http_status


class DataUnavailable(CorruptData):
    """A file that was intact when the run began no longer is; the message names it."""

    reason = "data_unavailable"
    retryable = True


class DiskFull(LecternError):
    """No space left on the device that holds the run folder."""

    reason = "disk_full"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 507
    retryable = True


class DiskStalled(DiskFull):
    """Writes to the disk no longer finish, though it may not be full."""

    reason = "disk_stalled"


class Misconfigured(LecternError):
    """A process cannot start with these settings; the message says what to set."""

    reason = "misconfigured"
    grpc_code = "FAILED_PRECONDITION"
    exit_code = 2


class BackendDown(LecternError):
    """The scheduler does not answer. Nothing is known, and nothing was changed; try again."""

    reason = "launcher_unavailable"
    http_status = 503
    retryable = True


class LaunchRefused(LecternError):
    """The backend will never start this, for the reason in its own words."""

    reason = "launch_failed"
    http_status = 409


def error_of(reason: str, message: str) -> LecternError:
    """Returns the error for a reason that another process sent; every edge uses it.

    An unknown reason, such as a newer server's, gives a LecternError that keeps it.
    """
    for kind in _kinds(LecternError):
        if kind.reason == reason:
            return kind([("", message)]) if issubclass(kind, InvalidSpec) else kind(message)
    error = LecternError(message)
    error.reason = reason or error.reason
    return error


def _kinds(root: type[LecternError]) -> list[type[LecternError]]:
    """Returns the tree below `root`, without subclasses that other modules define."""
    children = (kind for kind in root.__subclasses__() if kind.__module__ == __name__)
    return [root, *(kind for child in children for kind in _kinds(child))]
