"""Which ends heal by themselves, what such a run waits for, and how often it goes on.

teacher_unavailable      the teacher that the run was accepted with answers again
disk_full, disk_stalled  its disk has room for a checkpoint, and takes it
data_unavailable         its data can be read, and is what it was
rank_lost                a delay, which grows

An interrupted run that is wanted goes on when that is so: `waits_for` of its row says what it waits
for. Whether it is so, trainers/healing.py asks. After MAX_GOES times in a row without a new
checkpoint it waits for a person.
"""

from typing import Any

from control_plane.runs.record import Run
from lectern_common.errors import DataUnavailable, DiskFull, DiskStalled, TeacherUnavailable
from lectern_common.run.status import Status

RANK_LOST = "rank_lost"
MAX_GOES = 5
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 15.0, 300.0

# Why a run goes on, by the reason that it ended with.
HEALED = {
    TeacherUnavailable.reason: "the teacher answers again",
    DiskFull.reason: "there is room on the disk again",
    DiskStalled.reason: "the disk takes writes again",
    DataUnavailable.reason: "its data can be read again",
    RANK_LOST: "its processes are tried again",
}


def delay_seconds(tries: int) -> float:
    """Returns how long to wait after so many tries: it doubles, up to five minutes."""
    return float(min(FIRST_DELAY_SECONDS * 2.0 ** min(tries, 30), LONGEST_DELAY_SECONDS))


def teacher_answers(address: str) -> str:
    """Returns what a run waits for whose teacher is at this address."""
    return f"the teacher at {address} answers again"


def after_end(
    run: Run, reason: str | None, message: str | None, status: Status | None, now: float
) -> tuple[dict[str, Any], str | None]:
    """Returns the columns and the message of a wanted run that was interrupted.

    Args:
        run: before the end.
        reason: of the end; for one that does not heal there are no columns.
        message: of the end.
        status: the trainer's last.
        now: Unix seconds.
    """
    waits_for = _waits_for(run, reason)
    if reason not in HEALED or (waits_for is None and reason != RANK_LOST):
        return {}, message
    goes, reached = run.goes_so_far(status)
    columns: dict[str, Any] = {"restarts": goes, **reached}
    if goes >= MAX_GOES:
        text = f"it went on by itself {goes} times without a new checkpoint, and now waits for you"
        return columns, f"{message or reason}; {text}: resume it"
    if waits_for is None:
        return {**columns, "resume_at": now + delay_seconds(goes)}, message
    return {**columns, "waits_for": waits_for}, message


def _waits_for(run: Run, reason: str | None) -> str | None:
    if reason == TeacherUnavailable.reason:
        teacher = run.spec.get("teacher")
        address = teacher.get("address") if isinstance(teacher, dict) else None
        # A row of an early release does not say which model taught the run.
        return None if address is None or run.teacher is None else teacher_answers(str(address))
    if reason == DiskFull.reason:
        return "there is room on its disk again"
    if reason == DiskStalled.reason:
        return "its disk takes writes again"
    if reason == DataUnavailable.reason:
        return "its data can be read again"
    return None
