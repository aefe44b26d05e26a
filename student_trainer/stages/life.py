"""python -m student_trainer STAGE TASK_FOLDER [--home DIR]: the life of one task.

It holds the folder's lock while it works, keeps status.json up to date, and exits with

    0   succeeded: result.json is there
    75  stopped on request (SIGTERM or SIGINT) or interrupted: started again, it goes on
    or the exit code of the error that it failed with (lectern_common/errors.py)

A second signal ends the process at once. If it may not start (another process works on the task),
it leaves the folder untouched. A task that has succeeded succeeds again at once.
"""

import traceback
from collections.abc import Callable, Mapping

from lectern_common.errors import InvalidRequest, LecternError
from lectern_common.logs import get_logger
from lectern_common.roots import Roots
from lectern_common.run.status import RunState
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.requests import parse_request
from student_trainer.journal.disk_full import is_disk_full
from student_trainer.stages.journal import TaskJournal
from student_trainer.stages.table import STAGES, Stage
from student_trainer.stop import Stop, StopRequested

SUCCEEDED, FAILED, GOES_ON = 0, 1, 75
# A task may be started again while the children of a killed process are still ending.
_CHILDREN_END_SECONDS = 10.0

_log = get_logger()


def run_task(
    stage: str,
    folder: TaskFolder,
    roots: Roots,
    stop: Stop,
    stages: Mapping[str, Stage] = STAGES,
) -> int:
    """Does what is asked in a task folder; returns the exit status.

    Args:
        stage: its name, which the folder must have as well.
        folder: of the task; locked meanwhile.
        roots: what the request's paths are relative to.
        stop: ends it soon; what is done so far is kept.
        stages: those that there are.
    """
    try:
        patience = _CHILDREN_END_SECONDS if folder.status_path.exists() else 0.0
        with folder.locked(patience), TaskJournal(folder, stage, stop) as journal:
            return _live(stage, folder, roots, journal, stop, stages)
    except LecternError as error:
        _log.error("not_started", reason=error.reason, message=str(error))
        return error.exit_code


def _live(
    stage: str,
    folder: TaskFolder,
    roots: Roots,
    journal: TaskJournal,
    stop: Stop,
    stages: Mapping[str, Stage],
) -> int:
    """Does a task whose lock is held, and records its last state; returns the exit status."""
    try:
        _do(stage, folder, roots, journal, stop, stages)
    except StopRequested:
        journal.set_state(RunState.STOPPED, "stopped", stop.why)
        return GOES_ON
    except LecternError as error:
        _log.error("ended", reason=error.reason, message=str(error))
        field = error.field if isinstance(error, InvalidRequest) else None
        if error.retryable:
            journal.set_state(RunState.INTERRUPTED, error.reason, str(error), field)
            return GOES_ON
        journal.set_state(RunState.FAILED, error.reason, str(error), field)
        return error.exit_code
    except Exception as error:
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        _log.error("ended", reason="internal", error=what, exception=traceback.format_exc())
        if is_disk_full(error):
            journal.set_state(RunState.INTERRUPTED, "disk_full", str(error))
            return GOES_ON
        journal.set_state(RunState.FAILED, "internal", f"{what}; see {folder.log_path.name}")
        return FAILED
    journal.set_state(RunState.SUCCEEDED)
    return SUCCEEDED


def _do(
    stage: str,
    folder: TaskFolder,
    roots: Roots,
    journal: TaskJournal,
    stop: Stop,
    stages: Mapping[str, Stage],
) -> None:
    named, asked = folder.read_asked()
    if named != stage:
        why = f"the task in {folder.path} is of the stage {named}, not {stage}"
        raise InvalidRequest(why, field="stage")
    requests: dict[str, Callable[[], type]] = {name: one.request for name, one in stages.items()}
    if folder.result_path.exists():
        return
    request = parse_request(stage, asked, requests)
    # Imported late, because it takes seconds: the status is written, and signals are handled.
    function = stages[stage].function()
    stop.check()
    folder.work_path.mkdir(exist_ok=True)
    journal.set_state(RunState.RUNNING)
    folder.write_result(
        function(request, roots, folder.work_path, stop=stop, report=journal.report)
    )
