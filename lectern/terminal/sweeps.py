"""A sweep as plain text: its runs with what they set and reached, the groups, the best."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lectern.console import inert
from lectern_common.words import counted, duration, size

if TYPE_CHECKING:
    from lectern.client import SweepRun, SweepStatus, SweepSummary

_BEST = "*"
_CUT = "..."
_MAX_VALUE = 40


def sweep_lines(sweep: "SweepStatus", width: int | None = None) -> list[str]:
    """Returns the table of a sweep, the best marked with *; one of its groups if seeds differ.

    Args:
        sweep: what to show.
        width: longest line, in characters; longer ones are cut. None means uncut.
    """
    header = ["", "run", "state", "step", *sweep.settings]
    rows = [[*header, sweep.metric, f"best ({sweep.goal})", "at", "note"]]
    rows += [_run_row(sweep, run) for run in sweep.runs]
    lines = aligned(rows, left={0, 1, 2, len(rows[0]) - 1}, width=width)
    if "seed" in sweep.settings and sweep.groups:
        varied = [path for path in sweep.settings if path != "seed"]
        rows = [["", *varied, "n", "mean", "spread", "note"]]
        for index, group in enumerate(sweep.groups):
            mark = _BEST if index == sweep.best_group else ""
            values = [_text(group.settings.get(path)) for path in varied]
            spread = "" if group.spread is None else f"{group.spread:.4f}"
            note = inert(group.note or "")
            rows.append([mark, *values, str(group.n), _number(group.mean), spread, note])
        lines += ["", *aligned(rows, left={0, len(rows[0]) - 1}, width=width)]
    lines += ["", *(inert(line) for line in _summary(sweep))]
    return lines


def aligned(rows: Sequence[Sequence[str]], left: set[int], width: int | None = None) -> list[str]:
    """Returns the rows with equal columns; `left` are aligned left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(size) if column in left else cell.rjust(size)
            for column, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        if width is not None and len(line) > width:
            line = line[: width - len(_CUT)] + _CUT
        lines.append(line)
    return lines


def list_lines(sweeps: "Sequence[SweepSummary]", width: int | None = None) -> list[str]:
    """Returns a header and one line per sweep."""
    rows = [["sweep", "runs", "created", "states", "settings"]]
    for sweep in sweeps:
        created = datetime.fromtimestamp(sweep.created_at).astimezone()
        states = ", ".join(f"{count} {state}" for state, count in sorted(sweep.states.items()))
        settings = ", ".join(sweep.settings)
        runs = str(sum(sweep.states.values()))
        rows.append([sweep.id, runs, f"{created:%Y-%m-%d %H:%M}", states, settings])
    return aligned(rows, left={0, 2, 3, 4}, width=width)


def check_lines(found: dict[str, Any]) -> list[str]:
    """Returns what a sweep would make, every check, the estimate, and the advice."""
    paths = found["settings"]
    rows = [["run", *paths]]
    for run in found["runs"]:
        settings = run["settings"]
        rows.append([run["name"], *(_text(settings[p]) if p in settings else "-" for p in paths)])
    lines = [*aligned(rows, left={0}), ""]
    for check in found["checks"]:
        field = "" if check["field"] is None else f"{check['field']}: "
        lines.append(f"{check['outcome']:<5} {check['subject']:<10} {field}{check['message']}")
    estimate = found["estimate"]
    lines += ["", f"{counted(len(found['runs']), 'run')}, {estimate['tokens']:,} tokens in all"]
    if estimate["teacher_tokens"]:
        asked, shared = estimate["teacher_tokens"], estimate["teacher_tokens_shared"]
        hours = estimate["teacher_hours"]
        speed = "" if hours is None else f", {duration(hours)} at the teacher's measured speed"
        lines.append(
            f"the teacher is asked about {asked:,} tokens, and computes {shared:,} of them if "
            f"everything that can be shared is{speed}"
        )
    if estimate["free_disk_bytes"] is not None:
        lines.append(f"{size(estimate['free_disk_bytes'])} free on the disk of the runs")
    lines += [f"note: {advice}" for advice in found["advice"]]
    return [inert(line) for line in lines]


def run_line(run: "SweepRun") -> str:
    """Returns one line about a run, for where nothing can be redrawn."""
    set_to = ", ".join(f"{path} {_text(value)}" for path, value in run.settings.items())
    best = "" if run.best is None else f"  best {run.best:.4f} at step {run.at_step}"
    return inert(f"{run.run_id}  {run.state}  step {run.step}/{run.steps}  {set_to}{best}")


def _run_row(sweep: "SweepStatus", run: "SweepRun") -> list[str]:
    mark = _BEST if run.run_id == sweep.best else ""
    values = [_text(run.settings.get(path)) for path in sweep.settings]
    at_step = "" if run.at_step is None else str(run.at_step)
    reached = [_number(run.value), _number(run.best), at_step]
    step = f"{run.step}/{run.steps}"
    note = " ".join(inert(run.note or "").split())
    return [mark, run.run_id, str(run.state), step, *values, *reached, note]


def _summary(sweep: "SweepStatus") -> list[str]:
    made, left = sweep.json.get("num_runs", len(sweep.runs)), len(sweep.runs)
    lines = []
    if made != left:
        lines.append(f"{made - left} of its {made} runs were deleted")
    if sweep.best is None:
        lines.append("no run can be called the best yet")
    else:
        best = next(run for run in sweep.runs if run.run_id == sweep.best)
        which = "lowest" if sweep.goal == "min" else "highest"
        lines.append(f"best: {best.run_id}, {which} {sweep.metric} {_number(best.best)}")
        if "seed" in sweep.settings:
            lines[-1] += ", of the group with the best mean"
    teacher = sweep.teacher
    if teacher is not None and teacher.get("problem"):
        lines.append(
            f"what its runs share of the teacher's work is not known: {teacher['problem']}"
        )
    elif teacher is not None and teacher.get("shared") is not None:
        asked, computed = teacher["asked_tokens"], teacher["computed_tokens"]
        lines.append(
            f"teacher: computed {computed:,} of the {asked:,} tokens that its runs asked about; "
            f"{teacher['shared']:.0%} were shared"
        )
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _text(value: Any) -> str:
    """Returns a setting's value on one line, cut if it is long."""
    text = inert(value if isinstance(value, str) else json.dumps(value)).replace("\n", " ")
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - len(_CUT)] + _CUT
