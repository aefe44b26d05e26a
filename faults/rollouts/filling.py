"""O5: a disk that fills up while a run writes its rollouts to it."""

import shutil

from faults.rollouts.courses import KINDS, home_of_writers, sections_of, serving
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course
from faults.trainer.runs.run import Trainer
from faults.trainer.runs.small_disk import SmallDisk, small_disk
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState

# Long texts and rare checkpoints, so that it is a line of rollouts that finds the disk full.
_MORE = {
    "rollout": {"max_new_tokens": 64},
    "batch": {"sequences_per_step": 8},
    "schedule": {"steps": 40},
    "checkpoint": {"every_steps": 20},
}
_FULL_AFTER = 23
# Bytes left on the full disk: none, a page, some lines. Which file finds it full, is chance; None
# means that only the rollouts do, which is injected.
_ROOM = (None, 0, 4096, 16 << 10)
_INJECTED = "full-rollouts=25"


def full_disk(stage: Stage) -> Tally:
    """O5: a small file system fills up while a run writes rollouts to it, and is emptied later."""
    tally = Tally()
    home = home_of_writers(stage)
    named = 0
    with serving(stage, home) as server, small_disk(stage) as disk:
        for kind, sections in KINDS.items():
            stage.say(kind)
            course = Course.tried(stage, home, **sections_of(sections, server.address, **_MORE))
            for room in _ROOM[: stage.tries(4, 2)]:
                stage.say(f"{kind}, {room} bytes left")
                folder = disk.begin(course)
                ended = _ran_full(stage, course, disk, folder, room)
                status = folder.read_status()
                named += "rollouts.jsonl" in str(status and status.message)
                problem = ended or _went_on(stage, course, disk, folder)
                tally.count(not problem, f"{kind}, with {room} bytes left: {problem}")
                shutil.rmtree(folder.path)
    wanted = len(KINDS)
    tally.require(named >= wanted, f"{named} runs named rollouts.jsonl; expected {wanted} or more")
    tally.figure = (
        f"{disk.kind}: ends as interrupted (disk_full), {named} of {tally.tries} at a line of "
        "rollouts.jsonl, the last checkpoint intact; with space again it ends byte-equal"
    )
    return tally


def _ran_full(
    stage: Stage, course: Course, disk: SmallDisk, folder: RunFolder, room: int | None
) -> str:
    """Returns what goes wrong while the disk is full."""
    injected = () if room is not None and disk.is_real else (_INJECTED,)
    faults = ("waiting-steps=0.02", *injected)
    trainer = disk.trainer(stage, course, folder, *faults)
    try:
        trainer.wait_for_step(_FULL_AFTER, 60)
        if room is not None:
            disk.fill(room)
        return _ended_full(trainer, trainer.wait(60))
    finally:
        trainer.kill()
        disk.empty()


def _ended_full(trainer: Trainer, exit_status: int | None) -> str:
    status, newest = trainer.status, checkpoints.newest_step(trainer.folder)
    if exit_status != 75 or status is None:
        return f"it exited with status {exit_status}: {status and status.message}"
    if (status.state, status.reason) != (RunState.INTERRUPTED, "disk_full"):
        return f"it ended as {status.state}, {status.reason}: {status.message}"
    if not newest or newest != status.checkpoint_step:
        return f"the newest checkpoint is of step {newest}; it says {status.checkpoint_step}"
    return checkpoints.first_problem(trainer.folder)


def _went_on(stage: Stage, course: Course, disk: SmallDisk, folder: RunFolder) -> str:
    trainer = disk.trainer(stage, course, folder, options=("--resume",))
    try:
        return course.problem_of_end(trainer)
    finally:
        trainer.kill()
