"""Starts teacher servers in their own processes, and clients that ask them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lectern_common.teacher.replicas import TeacherReplicas
from lectern_models.loading import build_causal_lm
from student_trainer.stop import Stop
from student_trainer.teacher.calls import TeacherCalls
from student_trainer.teacher.remote import RemoteTeacher


@dataclass(frozen=True)
class Served:
    """A teacher server that is ready."""

    address: str
    pid: int


@contextmanager
def served(model: Path, folder: Path, *options: str) -> Iterator[Served]:
    """Runs a single-threaded teacher server with these options; yields its address and pid."""
    ready = folder / "port"
    ready.unlink(missing_ok=True)
    argv = [sys.executable, "-m", "teacher_server", "--model", str(model), "--threads", "1"]
    argv += ["--bind", "127.0.0.1:0", "--port-file", str(ready), "--log-level", "warning", *options]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise RuntimeError("the teacher server exited")
                time.sleep(0.05)
            yield Served(ready.read_text().strip(), process.pid)
        finally:
            process.terminate()


@contextmanager
def connected(
    address: str,
    vocab_size: int,
    cache: Path,
    stop: Stop | None = None,
    client: type[RemoteTeacher] = RemoteTeacher,
) -> Iterator[RemoteTeacher]:
    """Yields a connected client of the server, with an outage budget of 0."""
    calls = TeacherCalls(
        TeacherReplicas(address),
        deadline_seconds=120,
        outage_budget_seconds=0,
        stop=stop or Stop(),
    )
    with client(
        calls,
        run_id="benchmark",
        vocab_size=vocab_size,
        device=torch.device("cpu"),
        cache_root=cache,
    ) as remote:
        remote.connect()
        yield remote


@contextmanager
def on_cpus(cpus: Collection[int]) -> Iterator[None]:
    """Binds the processes that this thread starts in the block to these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def far_away(target: str, latency_seconds: float) -> Iterator[str]:
    """Runs a proxy to `target` that adds this latency per round trip; yields its address."""
    argv = [sys.executable, "-c", _PROXY, target, str(latency_seconds)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdout is None:
            raise ValueError("the proxy's standard output must be a pipe")
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


_PROXY = """
import sys
from faults.teacher.clients.proxy import BadNetwork

with BadNetwork(sys.argv[1], float(sys.argv[2]), bytes_per_second=1e12) as network:
    print(network.address, flush=True)
    sys.stdin.read()
"""


def write_model(folder: Path, config: dict[str, Any], seed: int = 1) -> Path:
    """Writes a model with random weights; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    build_causal_lm(folder, seed=seed).save_pretrained(folder)
    return folder
