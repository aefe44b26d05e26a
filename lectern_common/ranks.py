"""Starts and ends the processes of one computation: the ranks of a trainer or of a teacher.

They meet through a file in a folder that only this user can read, so no port is opened for that;
their traffic is bound to the loopback interface. A rank is told what to do through a pipe, its
stdin: it ignores the signals that its parent gets, and ends at once when the pipe closes, because
its parent has died.

This module does not import torch.
"""

import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

from lectern_common.threads import THREADS_VARIABLE, usable_cores

RENDEZVOUS = "LECTERN_RENDEZVOUS"
# Exit status of a rank that ended for a reason that says nothing about its work.
RANK_LOST = 70
# Whoever waits for a rank's standard input reads this descriptor.
STDIN = 0


def start_rank(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    rank: int,
    count: int,
    rendezvous: str,
    keep_open: tuple[int, ...] = (),
    stdout: int | None = None,
    blocked: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> "subprocess.Popen[bytes]":
    """Starts one rank; its stdin is a pipe. `end_ranks` ends it.

    Args:
        command: the program and its arguments.
        environment: of the rank; its own variables are added. Unless it says how many threads a
            rank has, each gets its share of the cores.
        rank: 0 <= rank < count.
        count: number of ranks, all on this machine.
        rendezvous: path of the file through which they meet; see `join_process_group`.
        keep_open: file descriptors that the rank inherits.
        stdout: see subprocess; None means the caller's.
        blocked: signals that it never gets, so that it learns of a stop only through its pipe, not
            from a Ctrl-C in the terminal or a SIGTERM to the process group.
    """
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        RENDEZVOUS: rendezvous,
    }
    threads = {THREADS_VARIABLE: str(share_of_cores(count))}
    with _signals_blocked(blocked):
        return subprocess.Popen(
            command,
            env={**threads, **environment, **loopback_only(), **place},
            stdin=subprocess.PIPE,
            stdout=stdout,
            pass_fds=keep_open,
        )


def end_ranks(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Kills ranks that still live, and returns when all have ended."""
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.wait()
        for pipe in (rank.stdin, rank.stdout):
            if pipe is not None:
                pipe.close()


def how_it_ended(rank: int, count: int, exit_status: int) -> str:
    """Returns for example "rank 1 of 2 was killed by SIGKILL", from subprocess' exit status."""
    if exit_status < 0:
        return f"rank {rank} of {count} was killed by {signal.Signals(-exit_status).name}"
    return f"rank {rank} of {count} exited with status {exit_status}"


def share_of_cores(count: int) -> int:
    """Returns how many of this process's cores each of `count` ranks gets, at least 1."""
    return max(1, usable_cores() // count)


def loopback_only() -> dict[str, str]:
    """Returns settings that bind the traffic between ranks to the loopback interface."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses):
            return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    return {}


@contextmanager
def _signals_blocked(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Blocks signals; a process started meanwhile keeps them blocked for its whole life."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
