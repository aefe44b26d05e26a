"""Teacher servers for tests: one in a thread of this process, one as a process of its own."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from teacher_server.engine.seam import Engine
from teacher_server.http.server import HttpServer
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.server import TeacherServer
from teacher_server.scheduling.sharing import Sharing

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Returns once the condition holds. Raises TimeoutError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come to hold")
        time.sleep(0.005)


_Result = TypeVar("_Result")


class TeacherThread:
    """A real server on a real socket, its event loop in a thread. `open` ends the loading state.

    With its HTTP face at `url`, if `http`.
    """

    def __init__(self, token: str | None = None, *, http: bool = False) -> None:
        self._http: HttpServer | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-loop")
        self._thread.start()
        try:
            self._server = self._do(self._started(token, http))
        except BaseException:
            self._end_loop()
            raise
        self.address = self._server.address
        self.url = "" if self._http is None else self._http.url

    def open(
        self, engine: Engine, limits: Limits | None = None, sharing: Sharing | None = None
    ) -> None:
        self._do(self._server.open(engine, limits or Limits(), sharing))

    def drain(self, timeout_seconds: float = 60.0) -> bool:
        """Drains; True when all calls in flight finished."""
        return self._do(self._server.drain(timeout_seconds))

    def close(self) -> None:
        try:
            self._do(self._server.drain(0))
            if self._http is not None:
                self._do(self._http.stop())
        finally:
            self._end_loop()

    def _do(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def _end_loop(self) -> None:
        """Ends every task first: what gRPC has not told to a loop by then, it never gets rid of."""
        try:
            self._do(_end_tasks())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _started(self, token: str | None, http: bool) -> TeacherServer:
        # The last object of grpc.aio to be collected joins gRPC's thread, in whatever test the
        # garbage collector runs, and for ever if an event is left over. One more, never given up.
        grpc.aio.init_grpc_aio()  # type: ignore[attr-defined]
        server = TeacherServer("127.0.0.1:0", token)
        await server.start()
        if http:
            self._http = HttpServer("127.0.0.1", 0, server.gate, token)
            await self._http.start()
        return server


async def _end_tasks() -> None:
    """Cancels all tasks of the loop but this one, and returns when they have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


@contextlib.contextmanager
def teacher_thread(
    engine: Engine,
    limits: Limits | None = None,
    token: str | None = None,
    sharing: Sharing | None = None,
) -> Iterator[str]:
    """Yields the address of a server that is ready."""
    server = TeacherThread(token)
    try:
        server.open(engine, limits, sharing)
        yield server.address
    finally:
        server.close()


@contextlib.contextmanager
def teacher_of(model: Path) -> Iterator[TeacherThread]:
    """Yields a ready server of a model folder: without a process that would import torch first."""
    from teacher_server.engine import transformers  # which imports torch

    server = TeacherThread()
    try:
        server.open(transformers.load(str(model), transformers.EngineSettings(device="cpu")))
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def http_teacher(
    engine: Engine,
    limits: Limits | None = None,
    token: str | None = None,
    sharing: Sharing | None = None,
) -> Iterator[TeacherThread]:
    """Yields a server that is ready, also over HTTP."""
    server = TeacherThread(token, http=True)
    try:
        server.open(engine, limits, sharing)
        yield server
    finally:
        server.close()


class TeacherProcess:
    """`python -m teacher_server` with these options, on a free port; ready when made."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._port_file = folder / "port"
        self._port_file.unlink(missing_ok=True)
        self.process = start_teacher(
            "--bind", "127.0.0.1:0", "--port-file", str(self._port_file), *options
        )
        try:
            wait_for(lambda: self._port_file.exists() or self.process.poll() is not None, 180)
            if self.process.poll() is not None:
                raise RuntimeError(self.process.communicate()[1])
        except BaseException:
            self.kill()
            raise
        self.address = self._port_file.read_text().strip()

    def stop(self, seconds: float = 60.0) -> tuple[int, str, str]:
        """SIGTERM; returns (exit status, standard output, standard error)."""
        self.process.send_signal(signal.SIGTERM)
        output, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, output, errors

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def start_teacher(*options: str) -> subprocess.Popen[str]:
    """Starts the process and does not wait for it. The caller ends it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "teacher_server", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def teacher_process(folder: Path, *options: str) -> Iterator[TeacherProcess]:
    """Yields a ready teacher process, and ends it."""
    teacher = TeacherProcess(folder, *options)
    try:
        yield teacher
    finally:
        teacher.kill()
