"""`python -m teacher_server`, run by `lectern teacher serve`: wiring and signals.

Exit status: 0 after a drain that let every call finish; 1 if calls were cut off or the server
broke; 2 or more if it could not start, with one sentence that says what to set.
"""

import argparse
import asyncio
import os
import signal
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lectern_common.callers import is_loopback, read_token_file
from lectern_common.errors import LecternError, Misconfigured, TeacherUnavailable
from lectern_common.files import write_atomic
from lectern_common.logs import configure_logs, get_logger
from lectern_common.roots import Roots
from lectern_common.words import host_and_port, inert_name
from teacher_server.engine.seam import DeviceLost, Engine
from teacher_server.observing.banner import gpu_present, idle_gpu_warning, ready_text
from teacher_server.observing.gpu import utilization_of
from teacher_server.options import limits_of, options_parser, require_engine_fits, sharing_of
from teacher_server.rpc.auth import (
    callers_text,
    plaintext_warning,
    require_callers_known,
)
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.server import TeacherServer
from teacher_server.rpc.tls import ServerTls, read_server_tls, ssl_context

if TYPE_CHECKING:
    from teacher_server.http.server import HttpServer
    from teacher_server.observing.metrics_server import MetricsServer
    from teacher_server.ranks.followers import Followers

log = get_logger()

# For calls in flight to be told that the teacher has lost a rank.
_LAST_WORDS_SECONDS = 5.0


def main(argv: list[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    options = options_parser().parse_args(argv)
    configure_logs(options.log_level)
    try:
        _require_folder_of(options.port_file)
        token = None if options.token_file is None else read_token_file(options.token_file)
        tls = read_server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
        require_engine_fits(options)
        limits = limits_of(options)
        sharing_of(options)
        return asyncio.run(_serve(options, limits, token, tls))
    except LecternError as error:
        print(f"lectern teacher: {inert_name(error)}", file=sys.stderr)
        return error.exit_code


@dataclass(frozen=True)
class _Service:
    """What the process serves with, and who may call it."""

    server: TeacherServer
    http: "HttpServer | None"
    metrics: "MetricsServer | None"
    token: str | None
    tls: ServerTls | None
    followers: "Followers | None"
    lost: asyncio.Event  # set once a follower is lost


async def _serve(
    options: argparse.Namespace, limits: Limits, token: str | None, tls: ServerTls | None
) -> int:
    """Starts, loads, serves, drains: the whole life of the process."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _stop_or_exit, stop)
    server = TeacherServer(options.bind, token, tls, limits.max_request_bytes)
    metrics = _metrics_server(options, server, token, tls)
    http = _http_server(options, server, token, tls)
    lost = asyncio.Event()
    followers = _followers(options, lost)
    try:
        service = _Service(server, http, metrics, token, tls, followers, lost)
        return await _live(options, limits, _loader(options, followers), service, stop)
    except LecternError:
        await _drain(server, http, 0)  # a server that is only dropped may keep the process
        raise
    finally:
        if followers is not None:
            followers.end()


async def _live(
    options: argparse.Namespace,
    limits: Limits,
    load: Callable[[], Engine],
    service: _Service,
    stop: asyncio.Event,
) -> int:
    """Serves until a stop is asked for; returns the exit status."""
    server, http, metrics = service.server, service.http, service.metrics
    token, tls = service.token, service.tls
    stopping = asyncio.create_task(stop.wait())
    losing = asyncio.create_task(service.lost.wait())
    await server.start()
    if http is not None:
        await http.start()
        log.info("http", url=http.url)
    if metrics is not None:
        await metrics.start()  # ends with the loop
        log.info("metrics", url=metrics.url)
    log.info("loading", model=options.model or options.engine, address=server.address)
    loading = asyncio.get_running_loop().run_in_executor(server.model_thread, load)
    await _first_of(loading, stopping, losing)
    if stop.is_set():
        await _drain(server, http, 0)
        return 0  # a model that is half loaded has nothing to finish
    if service.followers is not None and service.lost.is_set() and not loading.done():
        raise Misconfigured(f"the model cannot be loaded: {service.followers.lost}")

    engine = loading.result()
    utilization = utilization_of(engine.facts.device)  # polled until the process ends
    limits = await server.open(engine, limits, sharing_of(options), utilization)
    encryption = "none" if tls is None else "TLS"
    callers = callers_text(token, tls)
    url = None if metrics is None else metrics.url
    http_url = None if http is None else http.url
    print(
        ready_text(engine.facts, limits, server.address, callers, encryption, http_url, url),
        flush=True,
    )
    _warn(plaintext_warning(server.host, token, tls))
    _warn_of_idle_gpu(engine.facts.device)
    if options.port_file is not None:
        write_atomic(options.port_file, f"{server.address}\n".encode(), durable=False)

    batching = server.batching
    if batching is None:
        raise RuntimeError("open() starts the batcher")
    await _first_of(batching, stopping, losing)
    if service.followers is not None and service.followers.lost is not None:
        return await _give_up(server, http, service.followers.lost)
    broken = batching.done()
    if broken:
        log.error("the queue broke", exc_info=batching.exception())
    log.info("draining", timeout_seconds=options.drain_seconds)
    finished = await _drain(server, http, 0 if broken else options.drain_seconds)
    return 0 if finished and not broken else 1


async def _give_up(server: TeacherServer, http: "HttpServer | None", lost: str) -> int:
    """Ends a teacher that has lost a rank; calls in flight may be repeated. Returns the status."""
    print(
        f"lectern teacher: {lost}, and the other ranks cannot go on without it; start the teacher "
        "again",
        file=sys.stderr,
    )
    server.give_up(TeacherUnavailable(f"the teacher is ending: {lost}"))
    await _drain(server, http, _LAST_WORDS_SECONDS)
    return 1


def _followers(options: argparse.Namespace, lost: asyncio.Event) -> "Followers | None":
    """Returns the other ranks of the model, not started; None if this process has all of it."""
    if options.tensor_parallel == 1:
        return None
    from teacher_server.ranks.followers import Followers

    loop = asyncio.get_running_loop()

    def on_lost() -> None:
        loop.call_soon_threadsafe(lost.set)

    return Followers(options.tensor_parallel, on_lost)


def _metrics_server(
    options: argparse.Namespace, server: TeacherServer, token: str | None, tls: ServerTls | None
) -> "MetricsServer | None":
    """Returns the server of /metrics, with the teacher's token and TLS; None if not asked for."""
    if options.metrics_bind is None:
        return None
    from teacher_server.observing.metrics_server import MetricsServer

    host, port = host_and_port(options.metrics_bind, "--metrics-bind")
    require_callers_known(options.metrics_bind, token, tls, "--metrics-bind")
    if is_loopback(server.host):  # otherwise `_serve` warns
        _warn(plaintext_warning(host, token, tls))
    return MetricsServer(host, port, server.stats, token, _tls_context(options, tls))


def _http_server(
    options: argparse.Namespace, server: TeacherServer, token: str | None, tls: ServerTls | None
) -> "HttpServer | None":
    """Returns the HTTP face, with the teacher's token and TLS; None if it was not asked for."""
    if options.http is None:
        return None
    from teacher_server.http.server import HttpServer

    host, port = host_and_port(options.http, "--http")
    require_callers_known(options.http, token, tls, "--http")
    if is_loopback(server.host):  # otherwise `_serve` warns
        _warn(plaintext_warning(host, token, tls))
    return HttpServer(host, port, server.gate, token, _tls_context(options, tls))


def _tls_context(options: argparse.Namespace, tls: ServerTls | None) -> ssl.SSLContext | None:
    return None if tls is None else ssl_context(options.tls_cert, options.tls_key, tls.client_ca)


async def _drain(server: TeacherServer, http: "HttpServer | None", timeout_seconds: float) -> bool:
    """Drains gRPC and HTTP together; returns whether all calls finished."""
    finished = await server.drain(timeout_seconds)
    if http is not None:
        await http.stop()
    return finished


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _stop_or_exit(stop: asyncio.Event) -> None:
    """First signal: drain. Second: leave at once."""
    if stop.is_set():
        os._exit(1)
    stop.set()


def _loader(options: argparse.Namespace, followers: "Followers | None") -> Callable[[], Engine]:
    """Returns the function that loads the engine; it imports torch, on the model thread."""
    if options.engine == "fixture":

        def load_fixture() -> Engine:
            from teacher_server.engine.fixture import FixtureEngine

            return FixtureEngine(options.vocab_size)

        return load_fixture

    def load_model() -> Engine:
        import torch
        import transformers

        from teacher_server.engine import transformers as transformers_engine

        transformers.utils.logging.disable_progress_bar()
        settings = transformers_engine.EngineSettings(
            dtype=options.dtype,
            device=options.device,
            mode=options.mode,
            quantization=options.quantization,
            attention=options.attention,
            compiled=options.compile,
        )
        models = Roots.of_home(options.home).models
        if followers is not None:
            from teacher_server.ranks.lead import load_over_ranks

            engine = load_over_ranks(
                options.model,
                settings,
                followers,
                revision=options.revision,
                threads=options.threads,
                models=models,
            )
        else:
            if options.threads is not None:
                torch.set_num_threads(options.threads)
            engine = transformers_engine.load(
                options.model,
                settings,
                revision=options.revision,
                gguf_file=options.gguf_file,
                models=models,
            )
        try:
            engine.measure(sharing_of(options).batch_tokens_for(engine.facts))
        except DeviceLost as error:
            raise Misconfigured(f"the model cannot be served: {error}") from error
        return engine

    return load_model


def _warn_of_idle_gpu(device: str) -> None:
    torch = sys.modules.get("torch")
    cuda_available = torch is not None and torch.cuda.is_available()
    warning = idle_gpu_warning(device, cuda_available, gpu_present())
    if torch is not None:  # the fixture needs no GPU
        _warn(warning)


def _warn(warning: str | None) -> None:
    if warning is not None:
        print(f"\n{warning}\n", flush=True)
        log.warning(warning)


def _require_folder_of(port_file: Path | None) -> None:
    """Raises Misconfigured now rather than after the model is loaded."""
    if port_file is not None and not port_file.absolute().parent.is_dir():
        raise Misconfigured(f"--port-file {port_file}: there is no folder {port_file.parent}")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit, which would wait for a forward that is still running.
    os._exit(status)
