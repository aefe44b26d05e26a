"""Supervises a run on several devices: starts one process per device, and watches them.

The supervisor holds the run's lock.

    the run ends                rank 0's exit status is the run's
    a rank dies                 all are killed and restarted from the last checkpoint, up to
                                max_restarts times; then the run is interrupted, `rank_lost`
    a stop is requested         every rank is told through a pipe, its stdin; so is one at the next
                                checkpoint
    the supervisor dies         the pipes close, and every rank ends at once

lectern_common/ranks.py says how the ranks meet. On several machines `torchrun` starts them
(`python -m student_trainer` finds RANK and WORLD_SIZE set) and restarts them.

This module does not import torch.
"""

import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from lectern_common.logs import get_logger
from lectern_common.ranks import RANK_LOST, STDIN, end_ranks, how_it_ended, start_rank
from lectern_common.run.folder import STOP_AT_CHECKPOINT_SIGNAL
from student_trainer.stop import Stop

_log = get_logger()

_SUPERVISOR = "LECTERN_SUPERVISOR"
_RESTARTED = "LECTERN_RESTARTED"
_KEPT_OPEN = "LECTERN_KEPT_OPEN"
_ORDINARY = (0, 1, 75)
# Of equal length, so that a rank reads one at a time.
_STOP_WORD = b"stop\n"
_CHECKPOINT_WORD = b"save\n"
_POLL_SECONDS = 0.1
_BLOCKED = (signal.SIGTERM, signal.SIGINT, STOP_AT_CHECKPOINT_SIGNAL)
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
        while word := os.read(STDIN, len(_STOP_WORD)):
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
    own = {
        _SUPERVISOR: str(os.getpid()),
        _KEPT_OPEN: " ".join(str(descriptor) for descriptor in keep_open),
    }
    with tempfile.TemporaryDirectory(prefix="lectern-ranks-") as folder:
        try:
            for rank in range(count):
                ranks.append(
                    start_rank(
                        command,
                        {**environment, **own},
                        rank=rank,
                        count=count,
                        rendezvous=str(Path(folder) / "rendezvous"),
                        keep_open=keep_open,
                        blocked=_BLOCKED,
                    )
                )
            yield ranks
        finally:
            end_ranks(ranks)


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
    ended = [(rank, code) for rank, code in codes if code]
    for rank, code in sorted(ended, key=lambda one: one[1] > 0):
        return how_it_ended(rank, len(ranks), code)
    return f"one of {len(ranks)} ranks did not end"
