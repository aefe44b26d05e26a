"""Goals of the figures, and whether each is met.

A row lists its goals by figure: "goals": {"speed_ratio": ">= 1.5"}.
"""

import operator
from typing import Any

Row = dict[str, Any]

_HOLDS = {">=": operator.ge, "<=": operator.le}


def is_held(value: float | None, goal: str) -> bool:
    """Returns True if the value meets ">= bound" or "<= bound"; nan and None meet none.

    Raises:
        ValueError: the goal is not of this form.
    """
    sign, _, bound = goal.partition(" ")
    if sign not in _HOLDS:
        raise ValueError(f"expected a goal such as '>= 1.5' or '<= 1.5', got {goal!r}")
    return value is not None and bool(_HOLDS[sign](value, float(bound)))


def judged(row: Row) -> Row:
    """Returns the row with {"goal": ..., "held": ...} for each of its goals.

    Raises:
        KeyError: a goal names a figure that the row lacks.
    """
    if "goals" not in row:
        return row
    verdicts = {
        figure: {"goal": goal, "held": is_held(row[figure], goal)}
        for figure, goal in row["goals"].items()
    }
    return {**row, "goals": verdicts}


def as_text(row: Row) -> str:
    """Returns a judged row as one line, each goal after its figure."""
    verdicts = row.get("goals", {})
    return "  ".join(
        f"{figure}={_short(value)}" + _verdict(verdicts.get(figure))
        for figure, value in row.items()
        if figure != "goals"
    )


def _verdict(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return ""
    return f" (goal {verdict['goal']}, {'met' if verdict['held'] else 'MISSED'})"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
