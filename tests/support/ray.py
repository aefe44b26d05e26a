"""A real head of Ray on this machine, for tests: its own ports and folders, ended by pid.

`make ray` installs Ray in an environment of its own.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

from faults.launchers.cluster import free_ports
from tests.control_plane.conftest import ROOT

RAY_PROGRAM = ROOT / ".ray" / "bin" / "ray"
START_SECONDS = 90.0
CPUS = 2
_PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("ray-client-server-port", "metrics-export-port", "runtime-env-agent-port"),
    *("node-manager-port", "object-manager-port"),
)


def why_no_ray() -> str | None:
    """Returns why no head can be started here; None if one can."""
    return None if RAY_PROGRAM.exists() else "no .ray/bin/ray: run `make ray`"


class Head:
    """One head, which is also the cluster's only node.

    Args:
        folder: holds the token and what Ray says.
        token: that its REST interface asks for.
    """

    def __init__(self, folder: Path, token: str) -> None:
        self.folder = folder
        self.token_file = folder / "token"
        self.token_file.write_text(f"{token}\n")
        # Not under `folder`: Ray's sockets need a short path.
        self._scratch = Path(tempfile.mkdtemp(prefix="ray-"))
        self._ports = free_ports(len(_PORTS))
        self._head: subprocess.Popen[bytes] | None = None
        self._processes: list[psutil.Process] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._ports[1]}"

    def start(self) -> None:
        """Starts a head that knows of no job; returns once it takes some."""
        words = [f"--{name}={port}" for name, port in zip(_PORTS, self._ports, strict=True)]
        words += ["--head", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        words += [f"--num-cpus={CPUS}", "--num-gpus=0", "--object-store-memory=100000000"]
        words += [f"--temp-dir={self._scratch}", "--min-worker-port=0", "--max-worker-port=0"]
        env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        with (self.folder / "ray.out").open("ab") as out:
            self._head = subprocess.Popen(
                [str(RAY_PROGRAM), "start", *words],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _until(self._takes_jobs)

    def kill(self) -> None:
        """Kills every process of the head at once, as when its machine dies."""
        if self._head is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            head = psutil.Process(self._head.pid)
            found = [head, *head.children(recursive=True), *self._strays()]
            # What a job has started ends by itself once its supervisor is gone: that is tested.
            self._processes = [one for one in found if not _is_of_a_job(one)]
        for one in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._head.wait()
        self._head = None
        _until(lambda: not any(one.is_running() and not _is_zombie(one) for one in self._processes))

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _strays(self) -> list[psutil.Process]:
        """Returns what serves this head's folder, whoever its parent is."""
        known = psutil.process_iter(["cmdline"])
        folder = f"{self._scratch}/"
        return [one for one in known if folder in " ".join(one.info["cmdline"] or ())]

    def _takes_jobs(self) -> bool:
        headers = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        with contextlib.suppress(httpx.HTTPError):
            asked = httpx.get(
                f"{self.address}/api/jobs/", headers=headers, timeout=5, trust_env=False
            )
            return asked.is_success
        if self._head is not None and self._head.poll() is not None:
            raise RuntimeError((self.folder / "ray.out").read_text())
        return False


@contextlib.contextmanager
def ray_head(folder: Path, token: str) -> Iterator[Head]:
    """Yields a head that runs, and ends it."""
    head = Head(folder, token)
    try:
        head.start()
        yield head
    finally:
        head.close()


def _is_of_a_job(process: psutil.Process) -> bool:
    """Returns whether it is a trainer, or Ray's watcher that kills one."""
    try:
        words = " ".join(process.cmdline())
        return "stand_in_trainer.py" in words or "kill -s 0" in words
    except psutil.Error:
        return False


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _until(condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("Ray did not come up, or down")
        time.sleep(0.1)
