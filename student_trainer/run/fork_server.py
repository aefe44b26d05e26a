"""python -m student_trainer --fork-server DESCRIPTOR ROOM: starts trainers by forking.

It imports once what every trainer imports, which takes seconds, and does nothing else with it: it
has one thread, no tensor, no CUDA. A forked process then becomes a trainer like a fresh one: a
session, a log, an environment and a command line of its own. The control plane starts one server
(control_plane/trainers/launching/fork_server.py) and talks to it over the socket DESCRIPTOR, a
message each:

    {"ready": MIB}                        out, once: the memory that it holds; or {"unfit": WHY}
    {} and two descriptors: pipe, log     in: fork
    {"pid": 4711}                         out, at once
    {"exited": 4711, "status": -9}        out, once that process has ended; -9: by signal 9

The forked process reads from the pipe what it is: JSON with its words, its environment, and the
command line to show. The control plane writes it once it knows the pid; if it has died meanwhile,
the pipe is empty, and the process ends. So the server never sees an environment, with its secrets.

If the control plane ends, so does the server. Trainers do not care when the server ends.
"""

import ctypes
import gc
import json
import os
import select
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

_MESSAGE_BYTES = 4096
_NOT_TOLD = 70  # exit status of a process that was forked, and never told what it is
_ARG_START, _ARG_END = 48, 49  # numbers of fields of /proc/PID/stat, see proc(5)


def main(
    words: Sequence[str],
    program: Callable[[], int],
    load: Callable[[], None] | None = None,
) -> NoReturn:
    """Serves until the other end of the socket is closed; then ends the process.

    Args:
        words: DESCRIPTOR, and ROOM: nothing but space for the command lines of forked processes.
        program: what a forked process runs with its own sys.argv.
        load: imports what such programs need; None means what trainers need.
    """
    asking = socket.socket(fileno=int(words[0]))
    (load or _load_trainer)()
    unfit = why_unfit()
    if unfit is not None:
        asking.send(json.dumps({"unfit": unfit}).encode())
        sys.exit(1)
    gc.collect()
    gc.freeze()  # so that a forked process does not copy all memory at its first collection
    asking.send(json.dumps({"ready": _resident_mib()}).encode())
    if not _serve(asking):
        sys.exit(0)
    status = program()
    sys.stdout.flush()
    sys.exit(status)


def why_unfit() -> str | None:
    """Returns why this process must not be forked: a thread or CUDA would not survive it."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"importing has started {threads - 1} threads"
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("/dev/nvidia"):
            return f"importing has opened {target}"
    return None


def _serve(asking: socket.socket) -> bool:
    """Returns True in a forked process once it is told what it is; False in the server, at last."""
    living: dict[int, int] = {}  # pids by the descriptor of each process
    poll = select.poll()
    poll.register(asking, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != asking.fileno():
                poll.unregister(descriptor)
                os.close(descriptor)
                pid = living.pop(descriptor)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if not _tell(asking, {"exited": pid, "status": status}):
                    return False
                continue
            try:
                message, given, _, _ = socket.recv_fds(asking, _MESSAGE_BYTES, 2)
            except ConnectionError:
                return False
            if not message:
                return False
            unfit = why_unfit()
            if unfit is not None:
                _tell(asking, {"unfit": unfit})
                return False
            pid = os.fork()
            if pid == 0:
                for inherited in (*living, asking.detach()):
                    os.close(inherited)
                _become(*given)
                return True
            for descriptor in given:
                os.close(descriptor)
            opened = os.pidfd_open(pid)
            living[opened] = pid
            poll.register(opened, select.POLLIN)
            if not _tell(asking, {"pid": pid}):
                return False


def _tell(asking: socket.socket, message: dict[str, object]) -> bool:
    """Returns whether there is still somebody to tell."""
    try:
        asking.send(json.dumps(message).encode())
    except OSError:
        return False
    return True


def _become(pipe: int, log: int) -> None:
    """Makes this forked process what the pipe says; ends it if the pipe says nothing."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    with open(pipe, "rb") as told:
        what = told.read()
    if not what:
        os._exit(_NOT_TOLD)
    asked = json.loads(what)
    os.environ.clear()
    os.environ.update(asked["environment"])
    _show_as(asked["shown"])
    sys.argv = [sys.argv[0], *asked["words"]]
    threads = asked["environment"].get("OMP_NUM_THREADS", "")
    torch = sys.modules.get("torch")
    if torch is not None and threads.isdigit():
        torch.set_num_threads(int(threads))  # the variable was read when torch was imported


def _load_trainer() -> None:
    """Imports what every trainer does, usual architectures, and what an optimizer's step needs."""

    import student_trainer.run.assemble
    import student_trainer.run.loop  # noqa: F401


def _show_as(words: Sequence[str]) -> None:
    """Makes `ps` show these words as this process's command line, if there is room for them."""
    shown = b"\0".join(word.encode() for word in words) + b"\0"
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = (int(fields[number - 3]) for number in (_ARG_START, _ARG_END))
    if start > 0 and len(shown) <= end - start:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, shown, len(shown))


def _resident_mib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20
