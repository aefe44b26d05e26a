"""Requests that are no protobuf: refused like any other, not like a broken connection."""

from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from lectern_common.errors import InvalidRequest, LecternError
from lectern_common.teacher.channel import TeacherChannel, translated
from protos import teacher_pb2 as pb
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.rpc.gate import Gate
from teacher_server.rpc.server import SERVICE_NAME
from tests.support.asking import connect
from tests.support.servers import TeacherThread, teacher_thread

# A number without an end, a field that ends in its middle, a wire type that does not exist.
GARBLED = [b"\xff\xff\xff\xff", b"\x0a\x7f", b"\x0f\x01", b"not a message at all"]
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["Teacher"].methods]


def sent(channel: grpc.Channel, method: str, data: bytes) -> grpc.RpcError:
    """The error that these bytes get."""
    call: Any = channel.unary_stream(
        f"/{SERVICE_NAME}/{method}", request_serializer=bytes, response_deserializer=bytes
    )
    with pytest.raises(grpc.RpcError) as refused:
        list(call(data, timeout=30))
    return refused.value


@pytest.mark.parametrize("data", GARBLED)
@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_an_invalid_argument(method: str, data: bytes) -> None:
    with teacher_thread(FixtureEngine(97)) as address, connect(address) as channel:
        error: Any = sent(channel, method, data)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(error.trailing_metadata())["lectern-reason"] == "invalid_request"
        assert "message" in error.details()
        ours = translated(error, address, None)
        assert isinstance(ours, InvalidRequest) and not ours.retryable
        with TeacherChannel(address) as known:
            assert known.get_stats().refused_requests == 1


def test_while_it_loads_they_are_unavailable_like_any_request() -> None:
    server = TeacherThread()
    try:
        with connect(server.address) as channel:
            error: Any = sent(channel, "GetModel", GARBLED[0])
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.close()


def test_refusals_of_one_kind_are_logged_once_a_minute_with_their_number() -> None:
    now = [0.0]
    gate = Gate(clock=lambda: now[0])
    gate.serving = _Counted()  # type: ignore[assignment]

    def refuse(call: str, error: LecternError) -> None:
        with pytest.raises(LecternError), gate.answering(call, lambda: False):
            raise error

    with capture_logs() as lines:
        for _ in range(5):
            refuse("GetModel", InvalidRequest("first"))
        refuse("LogitsForBatch", InvalidRequest("another call"))
        now[0] = 61.0
        refuse("GetModel", InvalidRequest("later"))
    said = [
        (line["call"], line["detail"], line.get("more_since_the_last_line"))
        for line in lines
        if line["log_level"] == "warning"
    ]
    assert said == [
        ("GetModel", "first", None),
        ("LogitsForBatch", "another call", None),
        ("GetModel", "later", 4),
    ]


class _Counted:
    """What a gate counts on."""

    @property
    def accounting(self) -> "_Counted":
        return self

    def refused(self) -> None: ...
