"""What a figure should be, beside what it is.

A row that has goals names them under "goals": {"speed_ratio": ">= 1.5"}, figure by figure.
"""

import operator
from typing import Any

Row = dict[str, Any]

_HOLDS = {">=": operator.ge, "<=": operator.le}


def is_held(value: float | None, goal: str) -> bool:
    """Returns whether a figure holds ">= bound" or "<= bound"; nan and None hold nothing.

    Raises:
        ValueError: the goal is not of this form.
    """
    sign, _, bound = goal.partition(" ")
    if sign not in _HOLDS:
        raise ValueError(f"a goal is '>= bound' or '<= bound', not {goal!r}")
    return value is not None and bool(_HOLDS[sign](value, float(bound)))


def judged(row: Row) -> Row:
    """Returns the row with {"goal": ..., "held": ...} for each of its goals.

    Raises:
        KeyError: a goal is for a figure that the row does not have.
    """
    if "goals" not in row:
        return row
    verdicts = {
        figure: {"goal": goal, "held": is_held(row[figure], goal)}
        for figure, goal in row["goals"].items()
    }
    return {**row, "goals": verdicts}


def as_text(row: Row) -> str:
    """Returns a judged row as one line, each goal behind its figure."""
    verdicts = row.get("goals", {})
    return "  ".join(
        f"{figure}={_short(value)}" + _verdict(verdicts.get(figure))
        for figure, value in row.items()
        if figure != "goals"
    )


def _verdict(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return ""
    return f" (goal {verdict['goal']}, {'held' if verdict['held'] else 'MISSED'})"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
