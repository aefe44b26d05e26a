"""python -m student_trainer RUN_FOLDER [--resume] [--home DIR]: trains one run.

It holds the folder's lock while it lives, says in status.json where it is, and exits with

    0   succeeded, or stopped on request (SIGTERM or SIGINT: a checkpoint at the step boundary)
    1   failed: something has to change before it can go on
    75  interrupted: it can be resumed unchanged

With device.count above 1 it starts a process a device and watches them (ranks/supervisor.py). Over
several machines that share a file system `torchrun ... -m student_trainer RUN_FOLDER --resume`
starts them. A second signal ends it at once. Where it may not begin (another process trains the
run, or there are checkpoints and no --resume) the folder is left as it is.
"""

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lectern_common.logs import configure_logs
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder
from student_trainer.run.life import INTERRUPTED, run_trainer
from student_trainer.stop import Stop


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    configure_logs()
    folder = RunFolder(arguments.run_folder.resolve())
    roots = Roots.of_home(arguments.home)
    return run_trainer(folder, roots, _stop_on_signals(), resume=arguments.resume)


def _stop_on_signals() -> Stop:
    stop = Stop()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            os._exit(INTERRUPTED)
        stop.request()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m student_trainer", description="Trains one run."
    )
    parser.add_argument("run_folder", type=Path, help="holds spec.yaml")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--home", type=Path, help="see lectern_common/roots.py")
    return parser


def _leave(status: int) -> NoReturn:
    """Ends this process; that of a rank without taking the interpreter down.

    Threads of torch's outlive the process group, and now and then abort a rank whose interpreter
    ends under them ("terminate called without an active exception"), all of its work done: its
    watcher would take that for a loss.
    """
    if "RANK" not in os.environ:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main())
