"""The body of every error."""

from pydantic import Field

from control_plane.views.view import View


class FieldProblem(View):
    field: str
    """Dotted path; empty for the whole request."""
    message: str


class Problem(View):
    """RFC 9457 problem details, the body of every error."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    """Stable, machine-readable word."""
    retryable: bool
    errors: list[FieldProblem] = Field([])
