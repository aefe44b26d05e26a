"""What POST /runs/check answers: the checks of a spec and an estimate, without torch."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from control_plane.views.checks import CheckView, EstimateView, SpecCheckView
from lectern_common.checks.check import Check, Outcome
from lectern_common.checks.needs.estimate import estimate_run
from lectern_common.checks.preflight import Found
from lectern_common.errors import InvalidSpec
from lectern_common.spec.run_spec import RunSpec


def checked_spec(
    spec: RunSpec, checks: Sequence[Check], found: Found, free_disk_bytes: int | None
) -> SpecCheckView:
    """Returns the answer about a spec of which `checks` were made."""
    estimate = estimate_run(
        spec, found.rows, found.teacher, None, found.student.vocab_size, prompts=found.prompts
    )
    rows = found.rows
    return SpecCheckView(
        ok=all(check.outcome is not Outcome.FAIL for check in checks),
        spec=spec,
        checks=check_views(checks),
        estimate=EstimateView(
            tokens_per_step=estimate.tokens_per_step,
            tokens=estimate.tokens,
            epochs=estimate.epochs,
            bytes_per_step=None if estimate.wire is None else estimate.wire.bytes_per_step,
            teacher_tokens=estimate.teacher_tokens,
            teacher_hours=estimate.teacher_hours,
            training_rows=None if rows is None else rows.training,
            validation_rows=None if rows is None else rows.validation,
            free_disk_bytes=free_disk_bytes,
        ),
    )


def check_views(checks: Sequence[Check]) -> list[CheckView]:
    """Returns a view of each check, or one for each setting that is at fault."""
    return [view for check in checks for view in _views(check)]


def free_disk(folder: Path) -> int | None:
    """Returns the bytes free where the folder is, or None if that cannot be told."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _views(check: Check) -> list[CheckView]:
    """Returns one view, or one for each setting that is at fault."""
    message = f"{check.message}; {check.advice}" if check.advice else check.message
    faults: list[tuple[str | None, str]] = [(None, message)]
    if isinstance(check.error, InvalidSpec):
        faults = [(field or None, why) for field, why in check.error.problems]
    return [
        CheckView(outcome=check.outcome.value, subject=check.subject, message=why, field=field)
        for field, why in faults
    ]
