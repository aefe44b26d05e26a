"""A gRPC channel to one teacher server, and the calls that need no torch.

Used through replicas.py by the trainer's RemoteTeacher and by the checks. Errors arrive as the tree
of errors.py: the server names its error class in the trailing metadata `lectern-reason`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from lectern_common import errors
from lectern_common.teacher import tls as client_tls
from lectern_common.teacher.address import DNS_SCHEME
from lectern_common.teacher.tls import ClientTls
from lectern_common.wire.formats import MAX_MESSAGE_BYTES, PROTOCOL_VERSION
from lectern_common.wire.pieces import received
from protos import teacher_pb2, teacher_pb2_grpc

REASON_KEY = "lectern-reason"
FIELD_KEY = "lectern-field"
PUSHBACK_KEY = "grpc-retry-pushback-ms"

# Reconnect after an outage in 0.4 s instead of 29 s; notice a hung peer in 20 s instead of 60.
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    (
        "grpc.enable_retries",
        0,
    ),  # a stream that broke after its first piece is never retried: we ask again
    ("grpc.enable_http_proxy", 0),
]

_SERVICE = teacher_pb2.DESCRIPTOR.services_by_name["Teacher"].full_name
_LOGITS_FOR_BATCH = f"/{_SERVICE}/LogitsForBatch"
_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
# A teacher has no such errors: believed, its word would end a run as if its own disk were full.
_OF_THE_TRAINER = (errors.InvalidSpec, errors.Diverged, errors.DiskFull)


@dataclass
class TeacherChannel:
    """One connection to one teacher server, or with a `dns:///` name to all that it resolves to.

    Use as a context manager, or call close().

    Attributes:
        address: host:port, or dns:///name:port.
        token: sent with every call, never logged.
        tls: None is plaintext.
        server_name: what the server's certificate must be for, instead of the address's host.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    tls: ClientTls | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        self._channel = _open(self.address, self.tls, self.server_name)
        self.stub: Any = teacher_pb2_grpc.TeacherStub(self._channel)  # type: ignore[no-untyped-call]
        # As stub.LogitsForBatch, but its replies are those of wire/pieces.py.
        self.logits_for_batch: Any = self._channel.unary_stream(
            _LOGITS_FOR_BATCH,
            request_serializer=teacher_pb2.LogitsForBatchRequest.SerializeToString,
            response_deserializer=received,
        )

    def __enter__(self) -> "TeacherChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Call metadata that authenticates this client."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def call(self, method: Callable[..., Any], request: Any, timeout_seconds: float) -> Any:
        """Returns the reply of a unary call, or the iterator of a streaming one.

        Raises:
            LecternError: what the server said, or TeacherUnavailable. An iterator raises
                grpc.RpcError while it is read: wrap that in `translated`.
        """
        try:
            return method(request, timeout=timeout_seconds, metadata=self.metadata)
        except grpc.RpcError as error:
            raise self.translated(error) from None

    def translated(self, error: grpc.RpcError) -> errors.LecternError:
        """Returns the error of errors.py that a failed call on this channel stands for."""
        return translated(error, self.address, self.tls)

    def get_model(self, timeout_seconds: float = 10.0) -> teacher_pb2.Model:
        """Returns what the teacher is. Raises LecternError."""
        request = teacher_pb2.GetModelRequest(protocol_version=PROTOCOL_VERSION)
        model: teacher_pb2.Model = self.call(self.stub.GetModel, request, timeout_seconds)
        return model

    def get_stats(self, timeout_seconds: float = 10.0) -> teacher_pb2.Stats:
        """Returns counters since the server's start. Raises LecternError."""
        request = teacher_pb2.GetStatsRequest(protocol_version=PROTOCOL_VERSION)
        stats: teacher_pb2.Stats = self.call(self.stub.GetStats, request, timeout_seconds)
        return stats

    def get_tokenizer_map(self, timeout_seconds: float = 60.0) -> dict[str, int]:
        """Returns token -> id; empty where the model has no tokenizer. Raises LecternError."""
        request = teacher_pb2.GetTokenizerMapRequest(protocol_version=PROTOCOL_VERSION)
        tokens: dict[str, int] = {}
        try:
            for reply in self.call(self.stub.GetTokenizerMap, request, timeout_seconds):
                names = (name.decode("utf-8", "surrogatepass") for name in reply.tokens)
                tokens.update(zip(names, reply.ids, strict=True))
        except grpc.RpcError as error:
            raise self.translated(error) from None
        return tokens


def serving_state(address: str, timeout_seconds: float, tls: ClientTls | None = None) -> str:
    """Returns what the server's health service says of it, such as "SERVING"; needs no token.

    Raises:
        LecternError: nothing answers at the address, or not to this client.
    """
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with _open(address, tls) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise translated(error, address, tls) from None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def _open(address: str, tls: ClientTls | None, server_name: str | None = None) -> grpc.Channel:
    options = [*CHANNEL_OPTIONS]
    if address.startswith(DNS_SCHEME):
        options.append(("grpc.service_config", _ROUND_ROBIN))
    # The scheme in so many words: otherwise a host such as "unix" would be taken for one.
    target = DNS_SCHEME + address.removeprefix(DNS_SCHEME)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.secure_channel(target, credentials, options=options)


def translated(
    error: grpc.RpcError, address: str, tls: ClientTls | None = None
) -> errors.LecternError:
    """Returns the error of errors.py that a failed call stands for."""
    code = error.code()
    detail = error.details() or code.name
    trailing = {entry.key: str(entry.value) for entry in error.trailing_metadata() or ()}
    known = errors.error_of(trailing.get(REASON_KEY, ""), detail)
    if isinstance(known, errors.InvalidRequest):
        known.field = trailing.get(FIELD_KEY)
    if isinstance(known, errors.Overloaded) and PUSHBACK_KEY in trailing:
        known.retry_after_seconds = float(trailing[PUSHBACK_KEY]) / 1000
    if type(known) is not errors.LecternError and not isinstance(known, _OF_THE_TRAINER):
        return known
    # A fault of the server itself, a newer server's word or none: the status tells more.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return client_tls.refusal(detail, address) or errors.TeacherUnavailable(
            f"no teacher at {address} ({detail}); start one with `lectern teacher serve`, or set "
            f"teacher.address{client_tls.closed_hint(detail, tls)}"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.TeacherUnavailable(f"the teacher at {address} did not answer in time")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.TeacherError(
            f"{address} is not a Lectern teacher server, or a newer one ({detail})"
        )
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and REASON_KEY not in trailing:
        # Not the teacher's own word: a connection or a proxy that reset the stream.
        return errors.TeacherUnavailable(
            f"the connection to the teacher at {address} broke ({code.name}: {detail})"
        )
    return errors.TeacherError(f"the teacher at {address} answered {code.name}: {detail}")
