"""T9 to T11: invalid requests, replies that would be too large, and random bytes."""

import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from faults.models import write_model
from faults.processes import Peak, Server
from faults.row import Tally
from faults.stage import Stage
from faults.teacher.clients import frames
from faults.teacher.clients.asking import (
    OPTIONS,
    Refusal,
    ask,
    connect,
    health,
    request,
    score,
    shown,
    stats,
)
from faults.teacher.clients.badrequests import (
    MAX_DRAWS,
    MAX_SEQUENCE_TOKENS,
    MAX_SEQUENCES,
    MAX_TOKENS,
    MAX_TOP_K,
    VOCAB_SIZE,
    bad_requests,
    drawn,
    right,
)
from lectern_common.wire.formats import Representation, Widths

_FIXTURE = ("--engine", "fixture", "--vocab-size", "97")
_REFUSED = ("INVALID_ARGUMENT", "FAILED_PRECONDITION")


def bad_fields(stage: Stage) -> Tally:
    """T9: each field made invalid by hand, then random requests, beside valid ones."""
    tally = Tally()
    model = write_model(stage.folder / "model", vocab_size=VOCAB_SIZE)
    limits = (
        *("--max-sequences", str(MAX_SEQUENCES), "--max-tokens", str(MAX_TOKENS)),
        *("--max-sequence-tokens", str(MAX_SEQUENCE_TOKENS)),
        *("--max-top-k", str(MAX_TOP_K), "--max-draws", str(MAX_DRAWS)),
        *("--cache-bytes", "0"),  # so that neighbours are computed every time
    )
    with stage.server("--model", str(model), *limits, faults=("unmeasured",)) as server:
        with connect(server.address) as channel:
            before = stats(server.address).forwards
            for field, message in bad_requests():
                stage.say(field)
                answer = ask(channel, message)
                if not server.alive:
                    tally.count(False, f"the server crashed on a bad {field}")
                    return tally
                tally.count(
                    isinstance(answer, Refusal)
                    and answer.code == "INVALID_ARGUMENT"
                    and answer.trailing.get("lectern-field") == field
                    and field.rpartition(".")[2] in answer.detail,
                    f"bad {field}: {shown(answer)}",
                )
            forwards = stats(server.address).forwards - before
            tally.require(forwards == 0, f"{forwards} forwards ran for invalid requests")
        neighbours = _Neighbours(server.address)
        broken = _property(stage, server.address, tally)
        neighbours.end()
        tally.require(server.alive, "the server crashed")
    tally.require(neighbours.wrong == 0, f"{neighbours.wrong} neighbours' answers changed")
    tally.figure = (
        f"each refusal names its field; {broken} of the random requests broke anything; "
        f"{neighbours.right} answers to neighbours unchanged"
    )
    return tally


def _property(stage: Stage, address: str, tally: Tally) -> int:
    """Sends random requests: each is answered, or refused as the caller's fault."""
    draw = random.Random(0)  # noqa: S311 - test data, not a secret
    broken = 0
    with connect(address) as channel:
        for number in range(stage.tries(2000, 200)):
            stage.say(f"random request {number + 1}")
            message = drawn(draw)
            answer = ask(channel, message)
            fine = not isinstance(answer, Refusal) or answer.code in _REFUSED
            broken += not tally.count(fine, f"a random request: {shown(answer)}")
    return broken


class _Neighbours:
    """A client with valid requests, whose answers must stay the same."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._expected = score(address, right())
        self.right = self.wrong = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        with connect(self._address) as channel:
            while not self._ended.is_set():
                if ask(channel, right()) == self._expected:
                    self.right += 1
                else:
                    self.wrong += 1
                time.sleep(0.001)


T10_LIMIT_BYTES = 1 << 20


def reply_too_large(stage: Stage) -> Tally:
    """T10: a reply over the limit, then the largest batch that the refusal says fits."""
    tally = Tally()
    draw = random.Random(0)  # noqa: S311 - test data, not a secret
    limit = ("--max-reply-bytes", str(T10_LIMIT_BYTES), "--cache-bytes", "0")
    with stage.server(*_FIXTURE, *limit) as server, connect(server.address) as channel:
        for number in range(stage.tries(50, 10)):
            stage.say(f"reply {number + 1}")
            asked = draw.choice([Representation("dense"), Representation("top_k", 5)])
            tokens = T10_LIMIT_BYTES // asked.row_bytes(Widths(97, 0, "float32"))
            length = draw.randrange(100, 400)
            sequences = [[draw.randrange(97)] * length for _ in range(tokens // length + 2)]
            fitting = tokens // length
            before = stats(server.address).forwards
            refused = ask(channel, request(sequences, asked.kind, top_k=asked.top_k))
            computed = stats(server.address).forwards - before
            answered = ask(channel, request(sequences[:fitting], asked.kind, top_k=asked.top_k))
            tally.count(
                isinstance(refused, Refusal)
                and refused.code == "INVALID_ARGUMENT"
                and f"the first {fitting} of these {len(sequences)} sequences" in refused.detail
                and computed == 0
                and not isinstance(answered, Refusal),
                f"{asked.kind}: {shown(refused)}, after {computed} forwards",
            )
    tally.figure = (
        "refused before any forward; the largest batch, named in the refusal, is answered"
    )
    return tally


T11_MEMORY_BYTES = 64 << 20
_PREFIX_BYTES = 1 << 30
# Bytes sent of the promised GiB, if the server takes them.
_SENT_BYTES = 256 << 20


def random_bytes(stage: Stage) -> Tally:
    """T11: random frames, broken protobuf, and a message that claims to be 1 GiB long."""
    tally = Tally()
    draw = random.Random(0)  # noqa: S311 - noise, not a secret
    number = stage.tries(10_000, 1000)
    attacks: list[tuple[str, int, Callable[[Server, random.Random], object]]] = [
        ("random bytes on a connection", number // 4, _random_connection),
        ("random frames after a valid start", number // 4, _random_frames),
        ("broken protobuf in a call", number // 2, _broken_protobuf),
        ("a message of 1 GiB", 10, _long_prefix),
    ]
    with stage.server(*_FIXTURE) as server:
        expected = score(server.address, request([[1, 2, 3]]))
        with Peak(server.process.pid) as peak:
            for name, times, attack in attacks:
                for turn in range(times):
                    stage.say(f"{name}, {turn + 1} of {times}")
                    attack(server, draw)
                    tally.count(server.alive, f"{name}: the server crashed")
                with connect(server.address) as channel:
                    said = health(channel, 5)
                answer = score(server.address, request([[1, 2, 3]]))
                tally.require(said == "SERVING", f"after {name} health was {said}")
                tally.require(answer == expected, f"after {name} an answer changed")
    tally.require(
        peak.grown_bytes <= T11_MEMORY_BYTES, f"memory grew by {peak.grown_bytes >> 20} MiB"
    )
    tally.figure = f"alive, answers unchanged, memory +{peak.grown_bytes / (1 << 20):.0f} MiB"
    return tally


def _random_connection(server: Server, draw: random.Random) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        _send(connection, draw.randbytes(draw.randrange(1, 2000)))


def _random_frames(server: Server, draw: random.Random) -> None:
    with frames.connected(server.address) as connection:
        for _ in range(draw.randrange(1, 4)):
            kind, flags = draw.randrange(12), draw.randrange(256)
            stream = draw.choice([0, 1, 1, 3, 5, 2, draw.randrange(1 << 31)])
            payload = draw.randbytes(draw.choice([0, 4, 5, 6, 8, 100, 17_000]))
            _send(connection, frames.frame(kind, flags, stream, payload))


def _broken_protobuf(server: Server, draw: random.Random) -> None:
    """Makes a call with a truncated request, one with flipped bits, or noise."""
    data = right().SerializeToString()
    way = draw.randrange(3)
    if way == 0:
        data = data[: draw.randrange(len(data))]
    elif way == 1:
        broken = bytearray(data)
        for _ in range(draw.randrange(1, 8)):
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        data = bytes(broken)
    else:
        data = draw.randbytes(draw.randrange(400))
    with grpc.insecure_channel(server.address, options=OPTIONS) as opened:
        channel: Any = opened  # the stubs require serializers; bytes need none
        call = channel.unary_stream(frames.SCORE)
        try:
            list(call(data, timeout=10))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise RuntimeError("a broken message was never answered") from None


def _long_prefix(server: Server, draw: random.Random) -> None:
    """Makes a call whose message claims to be 1 GiB long, and sends part of it."""
    with frames.connected(server.address) as connection:
        _send(connection, frames.call(1, frames.SCORE))
        prefix = frames.message(b"", _PREFIX_BYTES)
        frames.send_as_taken(connection, prefix, _SENT_BYTES)


def _send(connection: socket.socket, data: bytes) -> bool:
    """Sends the data; returns False if the peer has closed."""
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True
