"""A gRPC channel to one teacher server, with the calls that need no torch.

The trainer's RemoteTeacher and the checks use it through replicas.py. Errors arrive as those of
errors.py: the server sends its error's reason in the trailing metadata `lectern-reason`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from lectern_common import errors
from lectern_common.teacher import tls as client_tls
from lectern_common.teacher.address import DNS_SCHEME, socket_path
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
    ),  # gRPC never retries a stream that broke after its first piece, so the client does
    # No proxy, whatever the environment names: neither http_proxy nor GRPC_ADDRESS_HTTP_PROXY.
    ("grpc.enable_http_proxy", 0),
    ("grpc.address_http_proxy_enabled_addresses", ""),
]

_SERVICE = teacher_pb2.DESCRIPTOR.services_by_name["Teacher"].full_name
_LOGITS_FOR_BATCH = f"/{_SERVICE}/LogitsForBatch"
_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
# A teacher has no such errors: taken literally, they would end a run as if its own disk were full.
_ONLY_THE_TRAINERS = (errors.InvalidSpec, errors.Diverged, errors.DiskFull)


@dataclass
class TeacherChannel:
    """A connection to one teacher server, or, for a `dns:///` name, to all that it resolves to.

    Use as a context manager, or call close().

    Attributes:
        address: host:port, dns:///name:port, or unix:/path.
        token: sent with every call, never logged.
        tls: None means plaintext.
        server_name: the name that the server's certificate must have, instead of the address's
            host.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    tls: ClientTls | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        self._channel = _open(self.address, self.tls, self.server_name)
        self.stub: Any = teacher_pb2_grpc.TeacherStub(self._channel)  # type: ignore[no-untyped-call]
        # Like stub.LogitsForBatch, but with the replies of wire/pieces.py.
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
            LecternError: the server's error, or TeacherUnavailable. An iterator raises
                grpc.RpcError while it is read; pass that to `translated`.
        """
        try:
            return method(request, timeout=timeout_seconds, metadata=self.metadata)
        except grpc.RpcError as error:
            raise self.translated(error) from None

    def translated(self, error: grpc.RpcError) -> errors.LecternError:
        """Returns a failed call's error as one of errors.py."""
        return translated(error, self.address, self.tls)

    def get_model(self, timeout_seconds: float = 10.0) -> teacher_pb2.Model:
        """Returns the teacher's description of its model. Raises LecternError."""
        request = teacher_pb2.GetModelRequest(protocol_version=PROTOCOL_VERSION)
        model: teacher_pb2.Model = self.call(self.stub.GetModel, request, timeout_seconds)
        return model

    def get_stats(self, timeout_seconds: float = 10.0) -> teacher_pb2.Stats:
        """Returns counters since the server's start. Raises LecternError."""
        request = teacher_pb2.GetStatsRequest(protocol_version=PROTOCOL_VERSION)
        stats: teacher_pb2.Stats = self.call(self.stub.GetStats, request, timeout_seconds)
        return stats

    def get_tokenizer_map(self, timeout_seconds: float = 60.0) -> dict[str, int]:
        """Returns token -> id; empty if the model has no tokenizer. Raises LecternError."""
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
    """Returns the state that the server's health service reports, such as "SERVING".

    Needs no token.

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
    # An explicit scheme: otherwise gRPC would take a host such as "unix" for one.
    on_this_machine = socket_path(address) is not None
    target = address if on_this_machine else DNS_SCHEME + address.removeprefix(DNS_SCHEME)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.secure_channel(target, credentials, options=options)


def translated(
    error: grpc.RpcError, address: str, tls: ClientTls | None = None
) -> errors.LecternError:
    """Returns a failed call's error as one of errors.py."""
    code = error.code()
    detail = error.details() or code.name
    trailing = {entry.key: str(entry.value) for entry in error.trailing_metadata() or ()}
    known = errors.error_of(trailing.get(REASON_KEY, ""), detail)
    if isinstance(known, errors.InvalidRequest):
        known.field = trailing.get(FIELD_KEY)
    if isinstance(known, errors.Overloaded) and PUSHBACK_KEY in trailing:
        known.retry_after_seconds = float(trailing[PUSHBACK_KEY]) / 1000
    if type(known) is not errors.LecternError and not isinstance(known, _ONLY_THE_TRAINERS):
        return known
    # An internal fault, an unknown reason (a newer server's) or none: the status says more.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return client_tls.refusal(detail, address) or errors.TeacherUnavailable(
            f"no teacher at {address} ({detail}); start one with `lectern teacher serve`, or set "
            f"teacher.address{client_tls.closed_hint(detail, tls)}"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.TeacherUnavailable(f"the teacher at {address} did not answer in time")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return errors.TeacherError(
            f"{address} is not a Lectern teacher server, or is a newer one ({detail})"
        )
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN) and REASON_KEY not in trailing:
        # Not from the teacher itself: the connection or a proxy reset the stream.
        return errors.TeacherUnavailable(
            f"the connection to the teacher at {address} broke ({code.name}: {detail})"
        )
    return errors.TeacherError(f"the teacher at {address} answered {code.name}: {detail}")
