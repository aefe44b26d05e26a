"""The checks of a spec, and what a run of it will need."""

from typing import Literal

from control_plane.views.view import View
from lectern_common.spec.run_spec import RunSpec


class CheckView(View):
    """One check of a spec, in the order in which a run would meet them."""

    outcome: Literal["pass", "warn", "fail", "skip"]
    subject: str
    message: str
    field: str | None
    """The setting at fault, as a dotted path; null if the check did not fail because of one."""


class EstimateView(View):
    """What a run will need. Null means that it is not known before the first step."""

    tokens_per_step: int
    tokens: int
    epochs: float | None
    bytes_per_step: int | None
    """From the teacher."""
    teacher_tokens: int
    teacher_hours: float | None
    """At the speed that the teacher has measured, without other clients."""
    training_rows: int | None
    validation_rows: int | None
    free_disk_bytes: int | None


class SpecCheckView(View):
    """What `lectern train --dry-run` finds without torch: nothing was created."""

    ok: bool
    """Whether POST /runs would accept it now."""
    spec: RunSpec
    """With every default filled in."""
    checks: list[CheckView]
    estimate: EstimateView
