"""The life of a run in its process: started or resumed, trained, exported, ended.

Whatever ends a run, status.json says why; the exit status tells the parent process what to do next.
"""

import os
import sys
import traceback
from contextlib import ExitStack, suppress

from lectern_common.errors import Conflict, CorruptData, InvalidSpec, LecternError
from lectern_common.logs import get_logger
from lectern_common.ranks import RANK_LOST
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder, checkpoint_steps
from lectern_common.run.status import RunState
from student_trainer.journal.activity import EXPORT
from student_trainer.journal.disk_full import is_disk_full
from student_trainer.journal.recorder import QuietRecorder, Recorder, RunRecorder
from student_trainer.ranks.supervisor import (
    RanksLost,
    another_rank_went,
    is_supervised,
    listen_to_supervisor,
    supervise,
    supervisor_pid,
    why_restarted,
)
from student_trainer.stop import Stop, StopRequested

_log = get_logger()

# Exit statuses; see __main__.py.
SUCCEEDED, FAILED, INTERRUPTED = 0, 1, 75
# A resume may start while the ranks of a killed trainer are still ending.
_RANKS_END_SECONDS = 10.0
# How long a rank with an error waits for another rank's end, which would explain the error.
_OTHERS_END_SECONDS = 2.0


def run_trainer(folder: RunFolder, roots: Roots, stop: Stop, *, resume: bool) -> int:
    """Trains the run in this process, or in one process per device; returns the exit status.

    Args:
        folder: of the run; locked meanwhile.
        roots: what the spec's paths are relative to.
        stop: ends the run at the next step boundary.
        resume: continue from the newest checkpoint.
    """
    try:
        if "RANK" in os.environ:
            return _as_rank(folder, roots, stop, resume=resume)
        with folder.locked(_RANKS_END_SECONDS if resume else 0.0) as lock:
            _require_fresh_or_resume(folder, resume=resume)
            if _device_count(folder) > 1:
                return _on_several_devices(folder, roots, stop, lock, resume=resume)
            with _recorder(folder, stop, resume=resume) as recorder:
                return live(folder, roots, recorder, stop, resume=resume)
    except LecternError as error:
        _log.error("not_started", reason=error.reason, message=str(error))
        return FAILED


def _on_several_devices(
    folder: RunFolder, roots: Roots, stop: Stop, lock: int, *, resume: bool
) -> int:
    """Starts one rank per device and watches them; returns the exit status."""
    spec = folder.read_spec()
    command = [sys.executable, "-m", "student_trainer", str(folder.path)]
    try:
        return supervise(
            command + (["--resume"] if resume else []),
            {**os.environ, **roots.environment()},
            count=spec.device.count,
            max_restarts=spec.device.max_restarts or 0,
            stop=stop,
            keep_open=(lock,),
            on_lost=lambda what, restart: _record_lost(folder, what, restart),
        )
    except RanksLost as error:
        last_status = None
        with suppress(CorruptData):  # the recorder replaces it
            last_status = folder.read_status()
        recorder = Recorder(folder, stop)
        recorder.go_on_from(last_status)
        with recorder:
            return _ended(recorder, "rank_lost", str(error), can_resume=True)


def _record_lost(folder: RunFolder, what: str, restart: int) -> None:
    try:
        folder.append_event("rank_lost", what=what, restart=restart)
    except OSError as error:  # a full disk must not prevent the restart
        _log.error("event_not_written", error=str(error))


def _as_rank(folder: RunFolder, roots: Roots, stop: Stop, *, resume: bool) -> int:
    """Trains as the rank that the environment names; returns its exit status."""
    first = os.environ["RANK"] == "0"
    with ExitStack() as stack:
        if is_supervised():
            listen_to_supervisor(stop)
        elif first:
            stack.enter_context(folder.locked())
            _require_fresh_or_resume(folder, resume=resume)
        # The process that ends the run is the one by which others know it.
        known_by = supervisor_pid() or os.getpid()
        recorder: RunRecorder = QuietRecorder()
        if first:
            recorder = _recorder(folder, stop, known_by, resume=resume)
        stack.enter_context(recorder)
        return live(folder, roots, recorder, stop, resume=resume)


def _recorder(
    folder: RunFolder, stop: Stop, known_by: int | None = None, *, resume: bool
) -> Recorder:
    """Returns the run's recorder; in a resumed run it starts at the newest checkpoint."""
    recorder = Recorder(folder, stop, known_by)
    with suppress(InvalidSpec):  # the next reader of the spec reports what is wrong
        recorder.set_progress(steps=folder.read_spec().schedule.steps)
    if resume:
        newest = max(checkpoint_steps(folder.checkpoints_path), default=None)
        forked = None
        with suppress(CorruptData):  # the assembly reports it
            forked = folder.read_forked_from()
        recorder.start_again_from(newest, why_restarted(), forked)
    return recorder


def live(
    folder: RunFolder, roots: Roots, recorder: RunRecorder, stop: Stop, *, resume: bool
) -> int:
    """Trains a run whose lock is held, and records its last state; returns the exit status."""
    outcome: tuple[RunState, str | None, str | None]
    try:
        outcome = _train_and_export(folder, roots, recorder, stop, resume=resume)
    except StopRequested:
        outcome = RunState.STOPPED, "stopped", stop.why
    except LecternError as error:
        _log.error("ended", reason=error.reason, message=str(error))
        return _ended(recorder, error.reason, str(error), can_resume=error.retryable)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        # Torch raises RuntimeError for a broken connection.
        patience = _OTHERS_END_SECONDS if isinstance(error, RuntimeError) else 0.0
        if not is_disk_full(error) and another_rank_went(patience):
            _log.warning("ended because another rank ended", error=what)
            return RANK_LOST
        _log.error("ended", reason="internal", error=what, exception=traceback.format_exc())
        if is_disk_full(error):
            return _ended(recorder, "disk_full", str(error), can_resume=True)
        if "RANK" in os.environ:
            return RANK_LOST  # the supervisor knows which rank failed first
        return _ended(recorder, "internal", f"{what}; see trainer.log", can_resume=False)
    recorder.set_state(*outcome)
    return SUCCEEDED


def _train_and_export(
    folder: RunFolder, roots: Roots, recorder: RunRecorder, stop: Stop, *, resume: bool
) -> tuple[RunState, str | None, str | None]:
    """Trains and exports; returns how the run ended: state, reason and message."""
    spec = folder.read_spec()
    if spec.device.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(spec.device.threads)
    # Imported late, because it takes seconds: the status is written, and signals are handled.
    import torch
    from transformers.utils.logging import disable_progress_bar

    from student_trainer.ranks.device import choose_device
    from student_trainer.ranks.world import join_ranks, leave_ranks
    from student_trainer.run.assemble import assemble
    from student_trainer.run.loop import train
    from student_trainer.run.parts import RunContext

    if spec.device.threads is not None:
        torch.set_num_threads(spec.device.threads)
    disable_progress_bar()
    with ExitStack() as held:
        with ExitStack() as stack:
            budgets = [teacher.outage_budget_seconds for teacher in spec.taught_by.values()]
            patience = max(budgets, default=0.0)
            device = choose_device(spec.device.kind)
            ranks = join_ranks(device, spec.device.count, patience)
            stack.callback(leave_ranks, ranks)
            context = RunContext(spec, roots, folder, device, ranks, recorder, stop, stack, held)
            run = assemble(context, resume=resume)
            with ranks.together():
                recorder.open_metrics(spec.report_to, run.progress.step)
            recorder.set_state(RunState.RUNNING)
            finished = train(run.parts, run.settings, run.progress)
        if not finished:
            at = f"stopped at the checkpoint of step {run.progress.step}, as asked"
            return RunState.STOPPED, "stopped", stop.why if stop.requested else at
        if ranks.is_first:
            recorder.doing(EXPORT)
            run.export()
            run.make_record()
    return RunState.SUCCEEDED, *run.ending()


def _ended(recorder: RunRecorder, reason: str, message: str, *, can_resume: bool) -> int:
    recorder.set_state(RunState.INTERRUPTED if can_resume else RunState.FAILED, reason, message)
    return INTERRUPTED if can_resume else FAILED


def _device_count(folder: RunFolder) -> int:
    try:
        return folder.read_spec().device.count
    except InvalidSpec:
        return 1  # the trainer itself reports what is wrong with the spec


def _require_fresh_or_resume(folder: RunFolder, *, resume: bool) -> None:
    if not resume and checkpoint_steps(folder.checkpoints_path):
        raise Conflict(f"run {folder.run_id} has checkpoints; use --resume to continue from them")
