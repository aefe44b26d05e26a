"""The result of an evaluation as Markdown."""

from collections.abc import Mapping
from typing import Any

from lectern_common.spec.suites import AGREEMENT, CODE, PERPLEXITY
from lectern_common.words import inert_name


def markdown(found: Mapping[str, Any]) -> str:
    """Returns a page about a result: a table for each suite."""
    model = found["model"]
    lines = [f"# Evaluation of {_cell(model['words'])}", ""]
    suites = found["suites"]
    if PERPLEXITY in suites:
        one = suites[PERPLEXITY]
        rows = {
            "loss (nats per token)": _number(one["loss"]),
            "perplexity": _number(one["perplexity"]),
            "bits per byte": _number(one["bits_per_byte"]),
            "tokens": f"{one['tokens']:,}",
        }
        lines += _table("Perplexity", rows)
    if AGREEMENT in suites:
        one = suites[AGREEMENT]
        rows = {
            "teacher": _cell(one["teacher"]["words"]),
            f"KL to the teacher (nats per token, {one['kl_is']})": _number(one["kl"]),
            "same likeliest token": _percent(one["top1_agreement"]),
            "expected calibration error, against the teacher": _percent(one["calibration_error"]),
            "expected calibration error, against the text": _percent(
                one["label_calibration_error"]
            ),
            "loss of the teacher (nats per token)": _number(one["teacher_loss"]),
        }
        lines += _table("Agreement", rows)
    if CODE in suites:
        lines += _table("Code", _code_rows(suites[CODE]))
    for task, metrics in suites.get("lm_eval", {}).get("tasks", {}).items():
        lines += _table(f"lm-eval: {_cell(task)}", {k: _number(v) for k, v in metrics.items()})
    lines.append(f"On {found['device']}, in {found['seconds']:,.1f} s.")
    return "\n".join(lines) + "\n"


def _code_rows(one: Mapping[str, Any]) -> dict[str, str]:
    rows = {}
    for k, value in one["pass_at_k"].items():
        error = one["standard_error"][k]
        around = "" if error is None else f" +- {100 * error:.1f} %"
        rows[f"pass@{k}"] = f"{_percent(value)}{around}"
    outcomes = one["outcomes"]
    judged = one["problems"] - one["not_judged"]
    rows["problems judged"] = f"{judged} of {one['problems']}, {one['samples']} samples each"
    rows["answers"] = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in outcomes.items()
    )
    rows["answers cut off"] = str(one["cut_answers"])
    rows["judged by"] = f"{_cell(one['interpreter'])}, " + (
        "in a sandbox" if one["sandbox"] else "without a sandbox"
    )
    return rows


def _table(title: str, rows: Mapping[str, str]) -> list[str]:
    lines = [f"## {title}", "", "| | |", "|---|---|"]
    return [*lines, *(f"| {_cell(name)} | {value} |" for name, value in rows.items()), ""]


def _cell(text: Any) -> str:
    return inert_name(text).replace("|", "\\|")


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
