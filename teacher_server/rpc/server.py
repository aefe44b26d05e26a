"""The server's life cycle: bound, loading, serving, draining, gone.

start()  binds the port; health says NOT_SERVING, other calls get UNAVAILABLE
open()   after loading: health says SERVING, then calls are taken
drain()  health says NOT_SERVING, new calls get UNAVAILABLE, calls in flight finish
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import AF_INET
from typing import Any

import grpc
import psutil
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from lectern_common.errors import LecternError, Misconfigured
from lectern_common.listening import (
    EVERY_IPV4,
    addresses_named,
    bound_sockets,
    only_for_this_user,
)
from lectern_common.logs import get_logger
from lectern_common.teacher.address import socket_path
from lectern_common.wire.formats import MAX_MESSAGE_BYTES
from lectern_common.wire.pieces import serialized
from lectern_common.words import address_of, host_and_port
from protos import teacher_pb2, teacher_pb2_grpc
from teacher_server.engine.seam import Engine
from teacher_server.rpc.auth import BearerTokenInterceptor, require_callers_known
from teacher_server.rpc.gate import Gate, Serving
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.servicer import Garbled, TeacherServicer
from teacher_server.rpc.tls import ServerTls
from teacher_server.scheduling.accounting import Accounting
from teacher_server.scheduling.admission import Admission, Quotas
from teacher_server.scheduling.batcher import Batcher
from teacher_server.scheduling.disk_cache import DiskCache
from teacher_server.scheduling.fair_share import FairShare
from teacher_server.scheduling.scheduler import Scheduler
from teacher_server.scheduling.sharing import Sharing

log = get_logger()

SERVICE_NAME = teacher_pb2.DESCRIPTOR.services_by_name["Teacher"].full_name

SERVER_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Per connection; a trainer opens a handful.
    ("grpc.max_concurrent_streams", 128),
    # By default two servers may bind one port and answer in turn.
    ("grpc.so_reuseport", 0),
    # Clients ping every 15 s to notice a hung server; by default gRPC would cut them off.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # A client that vanished without closing gives its place back.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]

# How long health watchers get after the last call has finished.
_GRACE_SECONDS = 0.5


class TeacherServer:
    """A gRPC server around one engine. Make, start and drain it inside one event loop.

    Args:
        bind: "host:port", port 0 picks a free one; or "unix:/path", a socket of this user's.
        token: bearer token that every call must carry; None means that none is needed.
        tls: certificate, key, and the authority of client certificates; None means plaintext.
        max_request_bytes: larger messages are refused before they are read.

    Raises:
        Misconfigured: the address is invalid, or reaches beyond loopback and anyone may call.
    """

    def __init__(
        self,
        bind: str,
        token: str | None,
        tls: ServerTls | None = None,
        max_request_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._socket = _socket_of(bind, tls)
        self.host, self._port = ("localhost", 0) if self._socket else host_and_port(bind)
        if self._socket is None:
            require_callers_known(bind, token, tls)
        self._tls = tls
        self._health = health_aio.HealthServicer()
        self.gate = Gate()
        self._servicer = TeacherServicer(self.gate)
        interceptors = [BearerTokenInterceptor(token)] if token is not None else []
        options = [*SERVER_OPTIONS, ("grpc.max_receive_message_length", max_request_bytes)]
        self._server = grpc.aio.server(interceptors=interceptors, options=options)
        # The only thread that touches the model.
        self.model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.batching: asyncio.Task[None] | None = None
        self._batcher: Batcher | None = None
        self._given_up = False
        self._disk_cache: DiskCache | None = None

    @property
    def address(self) -> str:
        """Where it listens, valid once started."""
        return f"unix:{self._socket}" if self._socket else address_of(self.host, self._port)

    async def start(self) -> None:
        """Binds the port and answers health checks with NOT_SERVING.

        Raises:
            Misconfigured: the port is taken, or the address is not this machine's.
        """
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        add_teacher: Any = teacher_pb2_grpc.add_TeacherServicer_to_server
        add_teacher(self._servicer, self._server)
        registered: Any = self._server  # grpc-stubs do not know the method
        registered.add_registered_method_handlers(SERVICE_NAME, self._handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self._server)
        try:
            self._port = self._listen()
        except (RuntimeError, OSError) as error:
            named = error.filename if isinstance(error, OSError) else None
            raise Misconfigured(
                f"cannot listen on {named or self.address}: {_why(error, self._socket)}; set "
                "another --bind"
            ) from None
        await self._server.start()

    def _handlers(self) -> dict[str, Any]:
        """Returns what replaces the generated handlers.

        Bytes that are not the request's message reach the servicer, which refuses them; and the
        pieces of LogitsForBatch are already serialized.
        """
        handlers: dict[str, Any] = {}
        for method in teacher_pb2.DESCRIPTOR.services_by_name["Teacher"].methods:
            reply = getattr(teacher_pb2, method.output_type.name).SerializeToString
            make: Any = (
                grpc.unary_stream_rpc_method_handler
                if method.server_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            handlers[method.name] = make(
                getattr(self._servicer, method.name),
                request_deserializer=_parser(getattr(teacher_pb2, method.input_type.name)),
                response_serializer=serialized if method.name == "LogitsForBatch" else reply,
            )
        return handlers

    def _listen(self) -> int:
        """Returns the port that was bound. Raises RuntimeError or OSError."""
        if self._socket is not None:
            with only_for_this_user(self._socket):
                return self._server.add_insecure_port(f"unix:{self._socket}")
        credentials = None
        if self._tls is not None:
            credentials = grpc.ssl_server_credentials(
                [(self._tls.key, self._tls.certificate)],
                self._tls.client_ca,
                require_client_auth=self._tls.client_ca is not None,
            )
        addresses = _addresses_to_bind(self.host)
        port = self._port
        if len(addresses) > 1:  # gRPC is content with one of them, so they are tried first
            probes = bound_sockets(self.host, port)
            port = int(probes[0].getsockname()[1])
            if self.host != EVERY_IPV4:  # only those of the name that this machine has
                addresses = [str(probe.getsockname()[0]) for probe in probes]
            for probe in probes:
                probe.close()
        for address in addresses:
            where = address_of(address, port)
            if credentials is None:
                port = self._server.add_insecure_port(where)
            else:
                port = self._server.add_secure_port(where, credentials)
        return port

    async def open(
        self,
        engine: Engine,
        limits: Limits,
        sharing: Sharing | None = None,
        utilization: Callable[[], float | None] = lambda: None,
    ) -> Limits:
        """Reports SERVING, then takes calls. Returns the limits that hold for this model.

        Args:
            utilization: returns how busy the device is, without waiting: see GpuUtilization.

        Raises:
            Misconfigured: the cache folder cannot be used.
        """
        sharing = sharing or Sharing()
        longest = engine.facts.max_positions
        if longest is not None:
            shorter = min(longest, limits.max_sequence_tokens)
            limits = dataclasses.replace(limits, max_sequence_tokens=shorter)
        # Off the loop: scanning a large folder or hashing a large tokenizer takes time.
        cache, _ = await asyncio.gather(
            asyncio.to_thread(sharing.cache_for, engine.facts),
            asyncio.to_thread(lambda: (engine.facts.tokenizer_sha256, engine.facts.num_tokens)),
        )
        accounting = Accounting()
        batcher = Batcher(
            engine,
            self.model_thread,
            accounting,
            Admission(limits.max_queued_requests, accounting, Quotas(sharing.quotas)),
            Scheduler(
                engine.facts,
                FairShare(sharing.weights),
                sharing.batch_tokens_for(engine.facts),
            ),
            cache,
        )
        self._batcher, self._disk_cache = batcher, batcher.cache.disk
        self.batching = asyncio.create_task(batcher.run())
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.gate.open(Serving(engine, batcher, accounting, limits, utilization))
        return limits

    def stats(self) -> teacher_pb2.Stats | None:
        """Returns what GetStats answers, or None while no calls are taken. Event loop only."""
        return self._servicer.stats()

    def give_up(self, error: LecternError) -> None:
        """Takes no more calls, and ends those that wait for the model with an error."""
        self._given_up = True
        self.gate.close(str(error))
        if self._batcher is not None:
            self._batcher.give_up(error)

    async def drain(self, timeout_seconds: float) -> bool:
        """Takes no more calls, waits for those in flight, stops. Returns whether all finished."""
        await self._health.enter_graceful_shutdown()
        if not self._given_up:
            self.gate.close("the teacher is shutting down")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gate.wait_until_idle(), timeout_seconds)
        finished = self.gate.is_idle
        if not finished:
            log.warning("calls cut off", after_seconds=timeout_seconds)
        await self._server.stop(_GRACE_SECONDS)
        if self.batching is not None:
            self.batching.cancel()
            await asyncio.wait([self.batching])  # it may have ended with an error of its own
        self.model_thread.shutdown(wait=False, cancel_futures=True)
        if self._disk_cache is not None:
            await asyncio.to_thread(self._disk_cache.close)
        return finished


def _socket_of(bind: str, tls: ServerTls | None) -> Path | None:
    """Returns the path of the socket that --bind names, None if it names host:port.

    Raises Misconfigured.
    """
    try:
        path = socket_path(bind)
    except ValueError as error:
        raise Misconfigured(f"--bind {bind!r} {error}") from None
    if path is not None and tls is not None:
        raise Misconfigured(f"--bind {bind} never leaves this machine: leave --tls-cert out")
    return None if path is None else Path(path)


def _why(error: Exception, path: Path | None) -> str:
    if path is None:
        return "the port is taken or the address is not this machine's"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "its folder does not exist or cannot be written"


def _parser(message: Any) -> Callable[[bytes], Any]:
    """Returns what parses a request; bytes that are not one become Garbled."""

    def parsed(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError:
            return Garbled(message.DESCRIPTOR.name)

    return parsed


def _addresses_to_bind(host: str) -> list[str]:
    """Returns the addresses that gRPC is to listen on, one by one, for what --bind names.

    Given a name, gRPC ignores addresses that are taken; given 0.0.0.0, it listens on IPv6 as well.
    Instead of that it gets each IPv4 address that this machine has now.

    Raises OSError if the name is unknown.
    """
    if host != EVERY_IPV4:
        return addresses_named(host)
    try:
        for probe in bound_sockets("::1", 0):
            probe.close()
    except OSError:  # a machine without IPv6, where gRPC takes 0.0.0.0 literally
        return [host]
    interfaces = psutil.net_if_addrs().values()
    found = [entry.address for each in interfaces for entry in each if entry.family == AF_INET]
    return list(dict.fromkeys(found))
