"""A control plane in a process of its own, its clients, and what it costs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

_PROGRAM = """
import json, sys
from control_plane.__main__ import main
trainer = json.loads(sys.argv[1])
sys.exit(main(sys.argv[2:], *([trainer] if trainer else [])))
"""
STAND_IN = (sys.executable, "-m", "benchmarks.control.trainer")
_READY_SECONDS = 120.0
_END_SECONDS = 30.0


class Service:
    """Made by `serving`."""

    def __init__(self, address: str, process: psutil.Process, token: str | None) -> None:
        self.address, self.process = address, process
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(
            base_url=f"http://{address}", headers=self.headers, timeout=600, trust_env=False
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        """Returns a successful answer. Raises httpx.HTTPStatusError."""
        return self.client.get(path, headers=headers).raise_for_status()

    def seconds(self, path: str) -> float:
        """Returns the wall time of one request."""
        began = time.perf_counter()
        self.get(path)
        return time.perf_counter() - began

    def cpu_share(self, seconds: float) -> float:
        """Returns the share of one core that the process takes over some seconds."""
        before, began = self._cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self._cpu_seconds() - before) / (time.monotonic() - began)

    def memory_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def _cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def serving(home: Path, trainer: Sequence[str], max_running: int) -> Iterator[Service]:
    """Runs a control plane and ends it, with its trainers.

    Args:
        home: of data, models and runs.
        trainer: the command of a trainer; () means the real one.
        max_running: runs that train at the same time.
    """
    with tempfile.TemporaryDirectory() as name:
        port_file = Path(name) / "port"
        argv = [sys.executable, "-c", _PROGRAM, json.dumps(list(trainer))]
        argv += ["--home", str(home), "--bind", "127.0.0.1:0", "--port-file", str(port_file)]
        argv += ["--max-running-runs", str(max_running), "--on-exit", "stop"]
        argv += ["--log-level", "error"]
        with subprocess.Popen(argv, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            try:
                deadline = time.monotonic() + _READY_SECONDS
                while not port_file.exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("the control plane did not start")
                    time.sleep(0.02)
                secret = home / "secrets" / "control-plane"
                token = secret.read_text().strip() if secret.is_file() else None
                service = Service(port_file.read_text(), psutil.Process(process.pid), token)
                with service.client:
                    yield service
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()


async def reading_streams(
    service: Service, paths: Sequence[str], seconds: float
) -> tuple[int, float]:
    """Reads one event stream per path for some seconds.

    Returns:
        The events received, and the share of one core that the service took.
    """
    host, _, port = service.address.rpartition(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in service.headers.items())
    events = 0

    async def read(path: str, opened: asyncio.Semaphore) -> None:
        nonlocal events
        reader, writer = await asyncio.open_connection(host, int(port))
        request = f"GET {path} HTTP/1.1\r\nHost: {service.address}\r\n{head}\r\n"
        writer.write(request.encode())
        status = await reader.readline()
        opened.release()
        if b" 200 " not in status:
            raise RuntimeError(f"{path} answered {status.decode().strip()}")
        try:
            async for line in reader:
                events += line.startswith(b"event:")
        finally:
            writer.close()

    opened = asyncio.Semaphore(0)
    readers = [asyncio.create_task(read(path, opened)) for path in paths]
    for _ in readers:
        await opened.acquire()
    await asyncio.sleep(1.0)
    before = events
    share = await asyncio.to_thread(service.cpu_share, seconds)
    received = events - before
    for reader in readers:
        reader.cancel()
    failed = [
        error
        for error in await asyncio.gather(*readers, return_exceptions=True)
        if isinstance(error, Exception)
    ]
    if failed:
        raise failed[0]
    return received, share
