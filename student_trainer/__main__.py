"""python -m student_trainer RUN_FOLDER [--resume] [--home DIR]: trains one run.

With the name of a stage before the folder (python -m student_trainer evaluate TASK_FOLDER), it does
a task instead; see stages/life.py. As the trainer of a run it holds the folder's lock while it
runs, keeps status.json up to date, and exits with

    0   succeeded, or stopped on request (SIGTERM or SIGINT: a checkpoint at the step boundary)
    1   failed: something has to change before the run can continue
    75  interrupted: it can be resumed unchanged

SIGUSR1 makes it end right after the next checkpoint that is due anyway, with 0; without one before
its last step it succeeds. So does a file of the name in LECTERN_STOP_AT_CHECKPOINT_FILE, once it is
there.

If device.count is above 1, it starts one process per device and watches them
(ranks/supervisor.py). On several machines that share a file system, start them with
`torchrun ... -m student_trainer RUN_FOLDER --resume`. A second signal ends the process at once. If
it may not start (another process trains the run, or there are checkpoints and --resume is not
given), it leaves the folder untouched.
"""

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lectern_common.logs import configure_logs
from lectern_common.roots import Roots
from lectern_common.run.folder import STOP_AT_CHECKPOINT_SIGNAL, STOP_FILE_VARIABLE, RunFolder
from lectern_common.stages.folder import TaskFolder
from student_trainer.run import fork_server
from student_trainer.run.life import INTERRUPTED, run_trainer
from student_trainer.stages.life import run_task
from student_trainer.stages.table import STAGES, Stage
from student_trainer.stop import Stop, stop_at_checkpoint_by_file, stop_at_end_of_input


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] and words[0] in STAGES:
        return do_task(words)
    arguments = _parser().parse_args(words)
    configure_logs()
    folder = RunFolder(arguments.run_folder.resolve())
    roots = Roots.of_home(arguments.home)
    stop = _stop_on_signals()
    if arguments.stop_with_parent:
        stop_at_end_of_input(stop)
    return run_trainer(folder, roots, stop, resume=arguments.resume)


def do_task(words: list[str], stages: Mapping[str, Stage] = STAGES) -> int:
    """Does the task that the words name, a stage and options; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m student_trainer {words[0]}", description="Does one task."
    )
    parser.add_argument("task_folder", type=Path, help="holds task.json")
    _add_shared(parser, "also stop")
    arguments = parser.parse_args(words[1:])
    configure_logs()
    stop = _stop_on_signals()
    if arguments.stop_with_parent:
        stop_at_end_of_input(stop)
    folder = TaskFolder(arguments.task_folder.resolve())
    return run_task(words[0], folder, Roots.of_home(arguments.home), stop, stages)


def _stop_on_signals() -> Stop:
    stop = Stop()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            os._exit(INTERRUPTED)
        stop.request()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    signal.signal(STOP_AT_CHECKPOINT_SIGNAL, lambda _number, _frame: stop.request_at_checkpoint())
    if stop_file := os.environ.get(STOP_FILE_VARIABLE):
        stop_at_checkpoint_by_file(stop, Path(stop_file))
    return stop


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m student_trainer", description="Trains one run."
    )
    parser.add_argument("run_folder", type=Path, help="holds spec.yaml")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    _add_shared(parser, "also stop with a checkpoint")
    return parser


def _add_shared(parser: argparse.ArgumentParser, stops: str) -> None:
    parser.add_argument("--home", type=Path, help="see lectern_common/roots.py")
    parser.add_argument(
        "--stop-with-parent",
        action="store_true",
        help=f"{stops} once standard input, a pipe, is closed: so when the process that holds its "
        "other end is killed",
    )


def _leave(status: int) -> NoReturn:
    """Ends this process; a rank skips the interpreter's shutdown.

    Threads of torch outlive the process group. Now and then they abort a rank during shutdown
    ("terminate called without an active exception"), after all its work is done, and the
    supervisor would count that as a lost rank.
    """
    if "RANK" not in os.environ:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fork-server"]:
        fork_server.main(sys.argv[2:], main)
    _leave(main())
