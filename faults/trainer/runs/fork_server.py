"""python -m faults.trainer.runs.fork_server FOLDER MODULE...: starts programs by forking.

It imports the modules once, which takes a trainer seconds, and does nothing else with them: no
thread runs, no tensor exists. Each line of JSON on its standard input names a program; the forked
process runs it through faults/launcher.py like a fresh one, and is killed, stopped and judged by
its own pid. So a hundred lives of a trainer do not pay for a hundred imports.

    ready                                                         out, once
    {"number": 3, "words": ["trainer", "--", ...], "log": PATH}   in
    4711                                                          out: the pid
    FOLDER/3                                                      its exit status, once it has one
"""

import importlib
import json
import os
import select
import sys
from pathlib import Path

from faults import launcher
from lectern_common.files import write_atomic

_STDIN = 0


def serve(statuses: Path) -> list[str]:
    """Returns the program's words in a forked process; [] in the server once input ends."""
    running: dict[int, tuple[int, int]] = {}  # descriptor of a process: its pid and number
    poll = select.poll()
    poll.register(_STDIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != _STDIN:
                poll.unregister(descriptor)
                os.close(descriptor)
                pid, number = running.pop(descriptor)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                write_atomic(statuses / str(number), str(status).encode(), durable=False)
                continue
            line = sys.stdin.readline()
            if not line:
                return []
            asked = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _take_over(asked["log"], running)
                return list(asked["words"])
            opened = os.pidfd_open(pid)
            running[opened] = (pid, asked["number"])
            poll.register(opened, select.POLLIN)
            print(pid, flush=True)


def _take_over(log: str, descriptors: dict[int, tuple[int, int]]) -> None:
    """Leaves the forked process nothing of the server's except its memory."""
    for descriptor in descriptors:
        os.close(descriptor)
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    for source, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(written)


def main(statuses: Path, modules: list[str]) -> None:
    """Imports and serves; a forked process then becomes the program."""
    for name in modules:
        importlib.import_module(name)
    print("ready", flush=True)
    words = serve(statuses)
    if words:
        launcher.main(words)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
