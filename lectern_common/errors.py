"""Every error that crosses a boundary: whose fault it is, whether to retry, how each edge says it.

Raised deep, translated once at the edge: by the gRPC servicer (`grpc_code`), by the HTTP exception
handler (`http_status`), and by the CLI (`exit_code`). `reason` is the stable word for programs, by
which `error_of` makes the same error again on the other side.

    LecternError
    |-- InvalidRequest        the caller sent something that can never work; `field` names it
    |   `-- InvalidSpec       a run spec, field by field
    |-- NotFound              the named thing does not exist
    |-- Conflict              the state does not allow it now
    |-- Unauthenticated       no token, or a wrong one
    |   `-- Untrusted         TLS: one side does not believe the other
    |-- Incompatible          two parts that are each fine do not fit together
    |   |-- TokenizerMismatch
    |   |-- SameWeights
    |   |-- WrongModel        another model answers than the run was started with
    |   `-- RepresentationNotOffered
    |-- Overloaded            full; the same request succeeds later
    |-- TeacherError          the teacher answered, and the answer is no good
    |   `-- TeacherOutOfMemory
    |-- TeacherUnavailable    no answer from the teacher; the same request may succeed later
    |-- Diverged              the loss or the gradient is not finite any more
    |-- CorruptData           stored bytes are not what was stored
    |   `-- DataUnavailable   data that a run reads changed, or cannot be read any more
    |-- DiskFull              no space left for a checkpoint or a record
    |   `-- DiskStalled       a write does not come to its end
    `-- Misconfigured         this process cannot start like this; says what to set
"""


class LecternError(Exception):
    """Root of the tree. `str(error)` is one sentence for a person that says what to do next.

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
    """The caller's fault: `field` is the offending field, or None where it is the whole."""

    reason = "invalid_request"
    grpc_code = "INVALID_ARGUMENT"
    http_status = 422
    exit_code = 2

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidSpec(InvalidRequest):
    """A run spec that does not validate.

    Attributes:
        problems: (dotted field, message) pairs, at least one.
    """

    reason = "invalid_spec"

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        lines = "; ".join(
            f"{field}: {message}" if field else message for field, message in problems
        )
        super().__init__(lines, field=problems[0][0] or None)
        self.problems = problems


class NotFound(LecternError):
    """The named run, dataset, model or file does not exist."""

    reason = "not_found"
    grpc_code = "NOT_FOUND"
    http_status = 404
    exit_code = 3


class Conflict(LecternError):
    """The thing's present state does not allow the request."""

    reason = "conflict"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    exit_code = 4


class Unauthenticated(LecternError):
    """No bearer token, or one that is not accepted."""

    reason = "unauthenticated"
    grpc_code = "UNAUTHENTICATED"
    http_status = 401
    exit_code = 5


class Untrusted(Unauthenticated):
    """TLS fails: a certificate is not believed, or only one side speaks TLS."""

    reason = "untrusted"


class Incompatible(LecternError):
    """Teacher, student and data are each fine, but not together."""

    reason = "incompatible"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 422
    exit_code = 6


class TokenizerMismatch(Incompatible):
    """Token-to-id maps differ; the message names the first ids that do."""

    reason = "tokenizer_mismatch"


class SameWeights(Incompatible):
    """Student and teacher are the same weights: there is nothing to distil."""

    reason = "same_weights"


class WrongModel(Incompatible):
    """The teacher at this address is not the model that was expected (fingerprints differ)."""

    reason = "wrong_model"


class RepresentationNotOffered(Incompatible):
    """The teacher does not offer the asked representation; the message carries its reason."""

    reason = "representation_not_offered"


class Overloaded(LecternError):
    """The queue is full. `retry_after_seconds` is when to ask again."""

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
    """A sequence alone does not fit into the teacher's memory."""

    reason = "teacher_out_of_memory"
    grpc_code = "RESOURCE_EXHAUSTED"


class TeacherUnavailable(LecternError):
    """The teacher cannot be reached, or did not answer within the deadline or the outage budget."""

    reason = "teacher_unavailable"
    grpc_code = "UNAVAILABLE"
    http_status = 502
    exit_code = 7
    retryable = True


class Diverged(LecternError):
    """Loss or gradient stopped being finite; the message names the last good checkpoint."""

    reason = "diverged"


class CorruptData(LecternError):
    """Stored bytes do not match their manifest, or a file is truncated."""

    reason = "corrupt_data"
    grpc_code = "DATA_LOSS"


class DataUnavailable(CorruptData):
    """A file that was whole when the run began is not any more; the message says which."""

    reason = "data_unavailable"
    retryable = True


class DiskFull(LecternError):
    """No space left on the device that holds the run folder."""

    reason = "disk_full"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 507
    retryable = True


class DiskStalled(DiskFull):
    """The disk takes nothing more, though it may not be full."""

    reason = "disk_stalled"


class Misconfigured(LecternError):
    """A process cannot start with these settings; the message says what to set."""

    reason = "misconfigured"
    grpc_code = "FAILED_PRECONDITION"
    exit_code = 2


def error_of(reason: str, message: str) -> LecternError:
    """Returns the error that another process named by its reason; the one way back, at every edge.

    A word that no class here has, such as a newer server's, makes a LecternError that keeps it.
    """
    for kind in _kinds(LecternError):
        if kind.reason == reason:
            return kind([("", message)]) if issubclass(kind, InvalidSpec) else kind(message)
    error = LecternError(message)
    error.reason = reason or error.reason
    return error


def _kinds(root: type[LecternError]) -> list[type[LecternError]]:
    """Returns the tree below `root`; what other modules derive for themselves is not in it."""
    children = (kind for kind in root.__subclasses__() if kind.__module__ == __name__)
    return [root, *(kind for child in children for kind in _kinds(child))]
