"""Supervises a run on several devices: starts one process per device, and watches them.

The supervisor holds the run's lock.

    the run ends                rank 0's exit status is the run's
    a rank dies                 all are killed and restarted from the last checkpoint, up to
                                max_restarts times; then the run is interrupted, `rank_lost`
    a stop is requested         every rank is told through a pipe, its stdin; so is one at the next
                                checkpoint
    the supervisor dies         the pipes close, and every rank ends at once

The ranks meet through a file in a folder that only this user can read, so no port is opened for
that; the traffic of FSDP is bound to the loopback interface. On several machines `torchrun` starts
the ranks (`python -m student_trainer` finds RANK and WORLD_SIZE set) and restarts them.

This module does not import torch.
"""

import math
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from lectern_common.logs import get_logger
from lectern_common.run.folder import STOP_AT_CHECKPOINT_SIGNAL
from lectern_common.threads import THREADS_VARIABLE, usable_cores
from student_trainer.stop import Stop

_log = get_logger()

RENDEZVOUS = "LECTERN_RENDEZVOUS"
_SUPERVISOR = "LECTERN_SUPERVISOR"
_RESTARTED = "LECTERN_RESTARTED"
_KEPT_OPEN = "LECTERN_KEPT_OPEN"
# Exit status of a rank that ended for a reason that says nothing about the run.
RANK_LOST = 70
_ORDINARY = (0, 1, 75)
_STDIN = 0
# Of equal length, so that a rank reads one at a time.
_STOP_WORD = b"stop\n"
_CHECKPOINT_WORD = b"save\n"
_POLL_SECONDS = 0.1
# From rank 0's end until the others are killed, and from another's failure until all are.
_GRACE_SECONDS = 20.0
# From the first rank that exits with an unexpected status until that counts as a loss.
_BROKEN_SECONDS = 5.0


class RanksLost(Exception):
    """A rank died, and max_restarts is used up. The message is for people."""


def supervise(
    command: list[str],
    environment: dict[str, str],
    *,
    count: int,
    max_restarts: int,
    stop: Stop,
    keep_open: tuple[int, ...],
    on_lost: Callable[[str, int], None],
) -> int:
    """Returns rank 0's exit status once all ranks have ended.

    Args:
        command: starts a rank; `--resume` is added for a restart.
        environment: of the ranks; each rank's own variables are added.
        count: number of ranks.
        max_restarts: see the module docstring.
        stop: passed on to the ranks.
        keep_open: file descriptors that ranks inherit, but not their child processes (the run's
            lock, so that it is free once all ranks have ended).
        on_lost: called with (what happened, restart number) before each restart.

    Raises:
        RanksLost: a rank died once too often, or during a stop.
    """
    again: dict[str, str] = {}
    for restart in range(max_restarts + 1):
        arguments = [*command, "--resume"] if restart and "--resume" not in command else command
        with _started(arguments, {**environment, **again}, count, keep_open) as ranks:
            code = _wait_for_end(ranks, stop)
            if code is not None:
                return code
            lost = _describe_loss(ranks)
        if stop.requested or restart == max_restarts:
            break
        _log.warning("rank_lost", what=lost, restart=restart + 1)
        on_lost(lost, restart + 1)
        again = {_RESTARTED: f"{lost} ({restart + 1} of {max_restarts} restarts)"}
    raise RanksLost(f"{lost}; {restart} of {max_restarts} restarts used; see trainer.log")


def listen_to_supervisor(stop: Stop) -> None:
    """Makes this rank stop when its supervisor says so, and end at once if the supervisor dies.

    From now on, child processes do not inherit the descriptors that the rank keeps open.
    """
    for descriptor in os.environ[_KEPT_OPEN].split():
        os.set_inheritable(int(descriptor), False)

    def listen() -> None:
        # Not sys.stdin: a thread must not hold its lock while the interpreter shuts down.
        while word := os.read(_STDIN, len(_STOP_WORD)):
            if word == _CHECKPOINT_WORD:
                stop.request_at_checkpoint()
            else:
                stop.request()
        os._exit(RANK_LOST)

    threading.Thread(target=listen, daemon=True, name="supervisor").start()


def is_supervised() -> bool:
    """Returns True in a rank that `supervise` started; False under torchrun or without ranks."""
    return supervisor_pid() is not None


def supervisor_pid() -> int | None:
    """Returns the supervisor's pid; None if `supervise` did not start this process."""
    pid = os.environ.get(_SUPERVISOR)
    return None if pid is None else int(pid)


def another_rank_went(patience_seconds: float) -> bool:
    """Returns True if another rank has ended, or ends within `patience_seconds`.

    A killed process closes its connections, which breaks those of the others, a moment before it
    has ended. Always False if `supervise` did not start this process.
    """
    pid, deadline = supervisor_pid(), time.monotonic() + patience_seconds
    if pid is None:
        return False
    while _living_children(pid) >= int(os.environ["WORLD_SIZE"]):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _living_children(pid: int) -> int:
    living = 0
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            living += child.status() != psutil.STATUS_ZOMBIE
    return living


def why_restarted() -> str | None:
    """Returns why `supervise` restarted this rank; None if it was not restarted."""
    return os.environ.get(_RESTARTED)


@contextmanager
def _started(
    command: list[str], environment: dict[str, str], count: int, keep_open: tuple[int, ...]
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    ranks: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="lectern-ranks-") as folder:
        try:
            for rank in range(count):
                place = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(count),
                    "LOCAL_WORLD_SIZE": str(count),
                    RENDEZVOUS: str(Path(folder) / "rendezvous"),
                    _SUPERVISOR: str(os.getpid()),
                    _KEPT_OPEN: " ".join(str(descriptor) for descriptor in keep_open),
                }
                # Unless the environment sets it, each rank gets its share of the cores.
                threads = {THREADS_VARIABLE: str(max(1, usable_cores() // count))}
                with _signals_blocked(signal.SIGTERM, signal.SIGINT, STOP_AT_CHECKPOINT_SIGNAL):
                    ranks.append(
                        subprocess.Popen(
                            command,
                            env={**threads, **environment, **_loopback_only(), **place},
                            stdin=subprocess.PIPE,
                            pass_fds=keep_open,
                        )
                    )
            yield ranks
        finally:
            for rank_process in ranks:
                rank_process.kill()
            for rank_process in ranks:
                rank_process.wait()
                if rank_process.stdin is not None:
                    rank_process.stdin.close()


@contextmanager
def _signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Blocks signals; a process started meanwhile keeps them blocked for its whole life.

    So a rank learns of a stop only through its pipe, not from a Ctrl-C in the terminal or a SIGTERM
    to the process group.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait_for_end(ranks: list["subprocess.Popen[bytes]"], stop: Stop) -> int | None:
    """Returns rank 0's exit status; None if a rank was lost. Others may still be alive."""
    stop_sent, told_of_checkpoint, deadline, broken_until = False, False, math.inf, math.inf
    while True:
        if stop.at_checkpoint and not told_of_checkpoint:
            told_of_checkpoint = True
            _send(ranks, _CHECKPOINT_WORD)
        if stop.requested and not stop_sent:
            stop_sent = True
            _send(ranks, _STOP_WORD)
        codes = [rank.poll() for rank in ranks]
        ended = [code for code in codes if code is not None]
        # Once rank 0 has ended with a status of the run, no other end is a loss. Its end breaks the
        # connections of the others, whose ends may be seen first; a signal needs no such patience.
        if codes[0] not in _ORDINARY:
            if any(code < 0 for code in ended) or time.monotonic() > broken_until:
                return None
            if any(code not in _ORDINARY for code in ended):
                broken_until = min(broken_until, time.monotonic() + _BROKEN_SECONDS)
        if len(ended) == len(ranks):
            return codes[0]
        # Only rank 0 exports; another rank that is done does not set a deadline.
        if codes[0] is not None or any(ended):
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        if time.monotonic() > deadline:
            return codes[0]
        time.sleep(_POLL_SECONDS)


def _send(ranks: list["subprocess.Popen[bytes]"], word: bytes) -> None:
    for rank in ranks:
        if rank.stdin is not None:
            try:
                rank.stdin.write(word)
                rank.stdin.flush()
            except BrokenPipeError:
                continue  # it has ended; the next poll says how


def _describe_loss(ranks: list["subprocess.Popen[bytes]"]) -> str:
    """Returns how the lost rank ended; a rank killed by a signal comes before those that exited."""
    codes = [(rank, process.poll()) for rank, process in enumerate(ranks)]
    signalled = [(rank, code) for rank, code in codes if code is not None and code < 0]
    failed = [(rank, code) for rank, code in codes if code is not None and code > 0]
    for rank, code in signalled:
        return f"rank {rank} of {len(ranks)} was killed by {signal.Signals(-code).name}"
    for rank, code in failed:
        return f"rank {rank} of {len(ranks)} exited with status {code}"
    return f"one of {len(ranks)} ranks did not end"


def _loopback_only() -> dict[str, str]:
    """Returns settings that bind the traffic between ranks to the loopback interface."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}
