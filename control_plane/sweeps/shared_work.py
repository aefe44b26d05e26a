"""How much of the teacher's work the runs of a sweep share, by the teacher's own account."""

from collections.abc import Sequence

from control_plane.runs.record import Run
from control_plane.sweeps.views import SweepTeacherView
from control_plane.teachers.monitor import TeacherMonitor
from lectern_common.spec.sweep import setting_of
from lectern_common.teacher.address import replica_addresses


async def shared_work(runs: Sequence[Run], teachers: TeacherMonitor) -> SweepTeacherView | None:
    """Returns what the teacher counts of the runs; None if no run has a teacher."""
    named = [setting_of(run.spec, "teacher.address") for run in runs]
    addresses = dict.fromkeys(
        one for name in named if isinstance(name, str) and name for one in replica_addresses(name)
    )
    if not addresses:
        return None
    account = await teachers.account(list(addresses), [run.id for run in runs])
    numbers = dict.fromkeys(SweepTeacherView.model_fields)
    if isinstance(account, str):
        return SweepTeacherView(**{**numbers, "problem": account})
    asked = account.asked_tokens
    return SweepTeacherView(
        problem=None,
        counted_runs=account.runs,
        asked_tokens=asked,
        computed_tokens=account.computed_tokens,
        shared=max(0.0, 1 - account.computed_tokens / asked) if asked else None,
        asked_sequences=account.asked_sequences,
        computed_sequences=account.computed_sequences,
    )
