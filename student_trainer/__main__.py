"""python -m student_trainer RUN_FOLDER [--resume] [--home DIR]: the life of one run.

It holds the folder's lock while it lives, says in status.json where it is, and exits with

    0   succeeded, or stopped on request (SIGTERM or SIGINT: a checkpoint at the step boundary)
    1   failed: something has to change before it can go on
    75  interrupted: it can be resumed unchanged

A second signal ends it at once. Where it may not begin (another process trains the run, or there
are checkpoints and no --resume) the folder is left as it is.
"""

import argparse
import os
import signal
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import structlog

from lectern_common.errors import Conflict, LecternError
from lectern_common.logs import configure_logs
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder, RunState
from student_trainer.disk_full import is_disk_full
from student_trainer.recorder import Recorder
from student_trainer.stopping import Stop, StopRequested

_log = structlog.get_logger()

SUCCEEDED, FAILED, INTERRUPTED = 0, 1, 75


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = _parser().parse_args(argv)
    configure_logs()
    folder = RunFolder(arguments.run_folder.resolve())
    roots = Roots.of_home(arguments.home)
    stop = _stop_on_signals()
    try:
        with folder.locked():
            _require_fresh_or_resume(folder, resume=arguments.resume)
            with Recorder(folder, stop) as recorder:
                return live(folder, roots, recorder, stop, resume=arguments.resume)
    except LecternError as error:
        _log.error("not_started", reason=error.reason, message=str(error))
        return FAILED


def live(folder: RunFolder, roots: Roots, recorder: Recorder, stop: Stop, *, resume: bool) -> int:
    """Trains a run whose lock is held; returns the exit status, having said the last state."""
    try:
        finished = _train_and_export(folder, roots, recorder, stop, resume=resume)
    except StopRequested:
        finished = False
    except LecternError as error:
        _log.error("ended", reason=error.reason, message=str(error))
        return _ended(recorder, error.reason, str(error), can_resume=error.retryable)
    except Exception as error:
        _log.error("ended", reason="internal", exception=traceback.format_exc())
        if is_disk_full(error):
            return _ended(recorder, "disk_full", str(error), can_resume=True)
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        return _ended(recorder, "internal", f"{what}; see trainer.log", can_resume=False)
    if finished:
        recorder.set_state(RunState.SUCCEEDED)
    else:
        recorder.set_state(RunState.STOPPED, "stopped", "stopped on request")
    return SUCCEEDED


def _train_and_export(
    folder: RunFolder, roots: Roots, recorder: Recorder, stop: Stop, *, resume: bool
) -> bool:
    """Returns True when all steps are made and exported, False when it was stopped."""
    spec = folder.read_spec()
    recorder.set_progress(steps=spec.schedule.steps)
    if spec.device.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(spec.device.threads)
    # Takes seconds: the run has said that it is starting, and hears signals.
    import torch
    from transformers.utils.logging import disable_progress_bar

    from student_trainer.assembly import assemble
    from student_trainer.loop import train

    if spec.device.threads is not None:
        torch.set_num_threads(spec.device.threads)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        run = assemble(spec, roots, folder, recorder, stop, stack, resume=resume)
        recorder.open_metrics(spec.report_to, run.progress.step)
        recorder.set_state(RunState.RUNNING)
        finished = train(run.parts, run.settings, run.progress)
    if finished:
        run.export(folder)
    return finished


def _ended(recorder: Recorder, reason: str, message: str, *, can_resume: bool) -> int:
    recorder.set_state(RunState.INTERRUPTED if can_resume else RunState.FAILED, reason, message)
    return INTERRUPTED if can_resume else FAILED


def _require_fresh_or_resume(folder: RunFolder, *, resume: bool) -> None:
    if not resume and any(folder.checkpoints_path.glob("step-*")):
        raise Conflict(f"run {folder.run_id} has checkpoints; go on from them with --resume")


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


if __name__ == "__main__":
    sys.exit(main())
