"""T20 and T21: bearer tokens, and addresses that need authentication."""

import datetime
import secrets
import socket
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from faults.processes import Launched
from faults.row import Tally
from faults.stage import Stage
from faults.teacher.clients import frames
from faults.teacher.clients.asking import OPTIONS, request
from protos import teacher_pb2 as pb

_FIXTURE = ("--engine", "fixture", "--vocab-size", "97")
_SERVICE = "/lectern.v1.Teacher/"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def _calls() -> dict[str, bytes]:
    """Returns path -> a valid request, for every call that needs a token."""
    return {
        f"{_SERVICE}GetModel": pb.GetModelRequest(protocol_version=1).SerializeToString(),
        f"{_SERVICE}GetStats": pb.GetStatsRequest(protocol_version=1).SerializeToString(),
        f"{_SERVICE}GetTokenizerMap": pb.GetTokenizerMapRequest(
            protocol_version=1
        ).SerializeToString(),
        f"{_SERVICE}GetOutputHead": pb.GetOutputHeadRequest(
            protocol_version=1, vocab_size=97
        ).SerializeToString(),
        frames.SCORE: request([[1, 2, 3]]).SerializeToString(),
        _REFLECTION: b"\x3a\x00",  # list_services
    }


def _wrong_credentials(token: str) -> list[tuple[tuple[str, str | bytes], ...]]:
    """Returns metadata of calls that must be refused."""
    last = "0" if token[-1] != "0" else "1"
    return [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", token),),
        (("authorization", f"Bearer {token[:-1]}"),),
        (("authorization", f"Bearer {token[:-1]}{last}"),),
        (("authorization", f"Bearer {token}0"),),
        (("authorization", f"Bearer {token.swapcase()}x"),),
        (("authorization", f"Basic {token}"),),
        (("authorization", f"Bearer {secrets.token_hex(32)}"),),
        (("authorization", "Bearer " + "x" * 4000),),
        (("authorization", f"Bearer {token}"), ("authorization", "Bearer other")),
        (("x-authorization", f"Bearer {token}"),),
        (("token", token),),
        (("authorization-bin", f"Bearer {token}".encode()),),
        (("cookie", f"authorization=Bearer {token}"),),
    ]


def tokens(stage: Stage) -> Tally:
    """T20: every call with no, a wrong or a misplaced token; no token reaches the log."""
    tally = Tally()
    token = secrets.token_hex(32)
    token_file = stage.folder / "token"
    token_file.write_text(token)
    options = (*_FIXTURE, "--token-file", str(token_file), "--log-level", "debug")
    with stage.server(*options) as server:
        with grpc.insecure_channel(server.address, options=OPTIONS) as channel:
            wrong = _wrong_credentials(token)
            for (path, message), metadata in product(_calls().items(), wrong):
                stage.say(path)
                code = _code(channel, path, message, metadata)
                tally.count(code == "UNAUTHENTICATED", f"{path} was answered {code}")
            for path, message in _calls().items():
                code = _code(channel, path, message, (("authorization", f"Bearer {token}"),))
                let_in = code not in ("UNAUTHENTICATED", "UNAVAILABLE", "INTERNAL")
                tally.require(let_in, f"{path} with the token was answered {code}")
            health = _code(channel, frames.HEALTH, b"", ())
            tally.require(health == "OK", f"health without a token was answered {health}")
            early, late = _comparison_times(channel, token, stage.tries(300, 30))
        log = server.log
    offered = [str(value) for metadata in wrong for _, value in metadata if len(value) > 12]
    said = [value for value in (token, *offered) if value in log]
    tally.require(not said, f"the log contains {len(said)} tokens")
    tally.figure = (
        "all UNAUTHENTICATED, no token in the log; refusing a wrong first or last character "
        f"differs by {1e6 * abs(early - late):.0f} us in {1000 * early:.1f} ms"
    )
    return tally


def _code(channel: grpc.Channel, path: str, message: bytes, metadata: Any) -> str:
    """Returns the status of a call; every kind of call can be made as a streaming one."""
    open_channel: Any = channel  # the stubs require serializers; bytes need none
    call = open_channel.stream_stream(path)
    try:
        list(call(iter([message]), timeout=10, metadata=metadata))
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _comparison_times(channel: grpc.Channel, token: str, pairs: int) -> tuple[float, float]:
    """Returns median seconds to refuse tokens wrong at their start, and at their end."""
    message = _calls()[f"{_SERVICE}GetModel"]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(pairs):
        for seconds, offered in zip(times, (f"x{token[1:]}", f"{token[:-1]}x"), strict=True):
            begun = time.perf_counter()
            _code(
                channel, f"{_SERVICE}GetModel", message, (("authorization", f"Bearer {offered}"),)
            )
            seconds.append(time.perf_counter() - begun)
    return statistics.median(times[0]), statistics.median(times[1])


T21_SECONDS = 5.0


def beyond_loopback(stage: Stage) -> Tally:
    """T21: addresses that other machines can reach, without authentication."""
    tally = Tally()
    certificate, key = _self_signed(stage.folder)
    tls = ("--tls-cert", str(certificate), "--tls-key", str(key))
    addresses = ["0.0.0.0:0", "[::]:0", *(f"{address}:0" for address in _own_addresses())]
    cases = [
        *(("--bind", address) for address in addresses),
        *(("--bind", address, *tls) for address in addresses[:2]),
        ("--bind", "127.0.0.1:0", "--metrics-bind", addresses[0]),
    ]
    slowest = 0.0
    for options in cases:
        stage.say(" ".join(options[:2]))
        folder = stage.new_folder()
        begun = time.monotonic()
        server = Launched("teacher", folder, (*_FIXTURE, *options), (), stage.sabotage)
        try:
            status = server.wait(T21_SECONDS)
            slowest = max(slowest, time.monotonic() - begun)
            listened = status is None and _listens(server.process.pid)
        finally:
            server.kill()
        refused = status not in (None, 0) and "--token-file" in server.log
        tally.count(
            refused and not listened,
            f"{' '.join(options)}: status {status} (None: still running), {server.log[-200:]!r}",
        )
    tally.figure = f"refuses to start within {slowest:.1f} s, naming the option to set"
    return tally


def _listens(pid: int) -> bool:
    connections = psutil.Process(pid).net_connections(kind="tcp")
    return any(connection.status == psutil.CONN_LISTEN for connection in connections)


def _own_addresses() -> list[str]:
    """Returns at most one IPv4 address of this machine that is not loopback."""
    return [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ][:1]


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """Returns the files of a certificate and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    certificate.write_bytes(signed.public_bytes(pem))
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return certificate, key
