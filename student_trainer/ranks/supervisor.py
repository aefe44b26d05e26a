"""A run on several devices: this process holds the lock, starts one process a device, and watches.

    ends by itself              rank 0's exit status is the run's
    any rank dies               all are killed, and started again from the last checkpoint, up to
                                max_restarts times; then the run is interrupted, `rank_lost`
    this process is asked to stop    every rank is told, through the pipe that is its stdin
    this process dies           the pipes close, and every rank ends at once

The ranks meet through a file in a folder that only this user can read: no port is opened for it,
and what FSDP exchanges is bound to the loopback interface. Over several machines `torchrun` starts
the ranks (`python -m student_trainer` finds RANK and WORLD_SIZE set), with its own restarts.

No torch is imported here.
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
import structlog

from student_trainer.stop import Stop

_log = structlog.get_logger()

RENDEZVOUS = "LECTERN_RENDEZVOUS"
_SUPERVISOR = "LECTERN_SUPERVISOR"
_RESTARTED = "LECTERN_RESTARTED"
_KEPT_OPEN = "LECTERN_KEPT_OPEN"
# Exit status of a rank that ended for a reason which is no answer of the run's.
RANK_LOST = 70
_ORDINARY = (0, 1, 75)
_STDIN = 0
_STOP_WORD = b"stop\n"
_POLL_SECONDS = 0.1
# From rank 0's end until the others are ended, and from another's failure until all are.
_GRACE_SECONDS = 20.0
# From the first rank that ended with an error of its own until that counts as a loss.
_BROKEN_SECONDS = 5.0


class RanksLost(Exception):
    """A rank died, and max_restarts are used up. The message is for people."""


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
    """Returns rank 0's exit status once all ranks are gone.

    Args:
        command: starts a rank; `--resume` is added for a restart.
        environment: of the ranks, which find in it what they are.
        count: number of ranks.
        max_restarts: see the module's head.
        stop: passed on to the ranks.
        keep_open: descriptors that ranks inherit, and what they start does not (the run's lock: it
            is free when all of them are gone).
        on_lost: told (what happened, restart number) before each restart.

    Raises:
        RanksLost: one died once too often, or while a stop was under way.
    """
    again: dict[str, str] = {}
    for restart in range(max_restarts + 1):
        arguments = [*command, "--resume"] if restart and "--resume" not in command else command
        with _started(arguments, {**environment, **again}, count, keep_open) as ranks:
            code = _watched(ranks, stop)
            if code is not None:
                return code
            lost = _what_was_lost(ranks)
        if stop.requested or restart == max_restarts:
            break
        _log.warning("rank_lost", what=lost, restart=restart + 1)
        on_lost(lost, restart + 1)
        again = {_RESTARTED: f"{lost} ({restart + 1} of {max_restarts} restarts)"}
    raise RanksLost(f"{lost}; {restart} of {max_restarts} restarts were made; see trainer.log")


def listen_to_supervisor(stop: Stop) -> None:
    """Has a rank stop when its supervisor says so, and end at once when that is gone.

    From then on what the rank starts inherits nothing of what it was given to keep open.
    """
    for descriptor in os.environ[_KEPT_OPEN].split():
        os.set_inheritable(int(descriptor), False)

    def listen() -> None:
        # Not through sys.stdin, whose lock a thread may not hold when the interpreter ends.
        while os.read(_STDIN, len(_STOP_WORD)):
            stop.request()
        os._exit(RANK_LOST)

    threading.Thread(target=listen, daemon=True, name="supervisor").start()


def is_supervised() -> bool:
    """Returns True in a rank that `supervise` started, False in one of torchrun's or in none."""
    return supervisor_pid() is not None


def supervisor_pid() -> int | None:
    """Returns the pid of the process that started this rank; None where `supervise` did not."""
    pid = os.environ.get(_SUPERVISOR)
    return None if pid is None else int(pid)


def another_rank_went(patience_seconds: float) -> bool:
    """Returns True in a rank beside which another has ended, or does within `patience_seconds`.

    A killed process closes its connections, which breaks the others', a moment before it has ended.
    False in a rank that `supervise` did not start.
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
    """Returns why `supervise` started this rank again; None in one that it started first."""
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
                # Unless somebody says how many, each has its part of the cores.
                threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
                with _held_back(signal.SIGTERM, signal.SIGINT):
                    ranks.append(
                        subprocess.Popen(
                            command,
                            env={**threads, **environment, **_loopback_alone(), **place},
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
def _held_back(*signals: signal.Signals) -> Iterator[None]:
    """Within, signals wait; a process that is started keeps them waiting for all of its life.

    So a rank hears of what concerns all by its pipe alone, not by a Ctrl-C that reaches the whole
    terminal, or by a SIGTERM to the group.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watched(ranks: list["subprocess.Popen[bytes]"], stop: Stop) -> int | None:
    """Returns rank 0's exit status; None where a rank was lost. Others may still be alive."""
    told, deadline, broken_until = False, math.inf, math.inf
    while True:
        if stop.requested and not told:
            told = True
            _tell(ranks)
        codes = [rank.poll() for rank in ranks]
        ended = [code for code in codes if code is not None]
        # Once rank 0 has said how the run ended, nobody's end is a loss. Its end breaks the others'
        # connections, and theirs may be seen first; a signal needs no such patience.
        if codes[0] not in _ORDINARY:
            if any(code < 0 for code in ended) or time.monotonic() > broken_until:
                return None
            if any(code not in _ORDINARY for code in ended):
                broken_until = min(broken_until, time.monotonic() + _BROKEN_SECONDS)
        if len(ended) == len(ranks):
            return codes[0]
        # Rank 0 alone exports; that another is done is no reason for haste.
        if codes[0] is not None or any(ended):
            deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        if time.monotonic() > deadline:
            return codes[0]
        time.sleep(_POLL_SECONDS)


def _tell(ranks: list["subprocess.Popen[bytes]"]) -> None:
    for rank in ranks:
        if rank.stdin is not None:
            try:
                rank.stdin.write(_STOP_WORD)
                rank.stdin.flush()
            except BrokenPipeError:
                continue  # it has ended; the next look says how


def _what_was_lost(ranks: list["subprocess.Popen[bytes]"]) -> str:
    """Says how the first lost rank ended: one killed by a signal before those it took along."""
    codes = [(rank, process.poll()) for rank, process in enumerate(ranks)]
    signalled = [(rank, code) for rank, code in codes if code is not None and code < 0]
    failed = [(rank, code) for rank, code in codes if code is not None and code > 0]
    for rank, code in signalled:
        return f"rank {rank} of {len(ranks)} was ended by {signal.Signals(-code).name}"
    for rank, code in failed:
        return f"rank {rank} of {len(ranks)} ended with status {code}"
    return f"a rank of {len(ranks)} did not end"


def _loopback_alone() -> dict[str, str]:
    """Returns settings that bind what ranks exchange to the loopback interface."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}
