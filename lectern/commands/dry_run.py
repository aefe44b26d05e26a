"""`lectern train --dry-run`: the resolved spec, every check, and an estimate of the run.

Writes nothing. A child process (student_trainer/run/dry_run.py) does what needs torch.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from lectern import console
from lectern.local.folder import require_folder
from lectern.local.processes import printable
from lectern_common.checks.check import Check, Outcome
from lectern_common.checks.needs.estimate import DataCounts, RunEstimate, estimate_run
from lectern_common.checks.needs.memory import ModelShape
from lectern_common.checks.preflight import Found, examine
from lectern_common.checks.rules import CUT
from lectern_common.errors import LecternError, Misconfigured
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import dump_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.threads import waiting_environment
from lectern_common.words import counted, duration, size

TIMEOUT_SECONDS = 300.0


def dry_run(spec: RunSpec, roots: Roots, *, resume: bool, as_json: bool) -> None:
    """Prints spec, checks and estimate. Raises typer.Exit with the first failed check's status."""
    checks = [_folder(spec, roots, resume=resume)]
    folder = RunFolder(roots.runs / spec.name)
    taught_by = folder.read_teacher() if resume else None
    packs_chats = not resume or folder.packs_chats
    examined, found = examine(
        spec,
        roots,
        taught_by=taught_by,
        packs_chats=packs_chats,
        teachers=folder.read_teachers() if resume else None,
    )
    of_teachers = [check.outcome for check in examined if check.subject == "teacher"]
    fits = bool(of_teachers) and all(outcome is Outcome.PASS for outcome in of_teachers)
    looked = look_with_torch(spec, roots, asks_teacher=fits)
    checks += [*examined, *map(Check.of_json, looked["checks"])]
    made = folder.newest_step if resume else None
    estimate = _estimate(spec, found, looked, made or 0)
    free_disk = _free_disk(roots)
    if estimate.disk_bytes is not None and estimate.disk_bytes > free_disk:
        message = (
            f"checkpoints and export may need {size(estimate.disk_bytes)}, but only "
            f"{size(free_disk)} is free under the runs root; lower checkpoint.keep_last or "
            "checkpoint.keep_best"
        )
        checks.append(Check("disk", Outcome.WARN, message))
    failed = [check for check in checks if check.error is not None]
    if as_json:
        printed = _as_json(spec, checks, estimate, looked, free_disk, ok=not failed)
        has_chats = found.counts is not None and found.counts.of == "chat"
        printed["chats"] = found.counts.as_json() if found.counts and has_chats else None
        console.print_json(printed)
    else:
        print(dump_spec(spec))
        for check in checks:
            print(_line(check))
        print()
        figures = list(_lines(spec, found, estimate, looked, free_disk))
        if found.counts is not None:
            figures += _count_lines(found.counts)
        figures += _source_lines(spec, found)
        print("\n".join(table(figures)))
    if failed and failed[0].error is not None:
        if not as_json:
            lines = [f"error: {len(failed)} of {len(checks)} checks failed", *map(_line, failed)]
            console.note(console.inert("\n".join(lines)))
        raise typer.Exit(failed[0].error.exit_code)


def _line(check: Check) -> str:
    words = check.message if check.outcome is Outcome.PASS else str(check)
    return console.inert(f"{check.outcome:<5} {check.subject:<10} {words}")


def look_with_torch(
    spec: RunSpec, roots: Roots, *, asks_teacher: bool, timeout_seconds: float = TIMEOUT_SECONDS
) -> dict[str, Any]:
    """Returns the findings of student_trainer/run/dry_run.py; takes as long as importing torch."""
    command = [sys.executable, "-m", "student_trainer.run.dry_run"]
    environment = {**os.environ, **waiting_environment(), **roots.environment()}
    try:
        done = subprocess.run(
            [*command, "--ask-teacher"] if asks_teacher else command,
            input=spec.model_dump_json().encode(),
            capture_output=True,
            timeout=timeout_seconds,
            env={**environment, "PYTHONSAFEPATH": "1"},
            check=False,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        problem = f"the trainer did not finish its checks within {timeout_seconds:g} s"
    except (IndexError, ValueError):
        last_line = done.stderr.splitlines()[-1:] or [b"no output"]
        problem = f"the trainer does not start: {printable(last_line[0])}; see `lectern doctor`"
    else:
        return found
    return {"checks": [Check.failed("device", Misconfigured(problem)).as_json()]}


def _source_lines(spec: RunSpec, found: Found) -> Iterator[tuple[str, str, str]]:
    """Yields what each of several sources holds, and how often its rows are seen."""
    sources = spec.data.sources or []
    total = sum(source.weight for source in sources)
    for index, source in enumerate(sources):
        rows = found.sources[source.label].rows if source.label in found.sources else None
        taught = "cross entropy only" if source.teacher is None else f"taught by {source.teacher}"
        words = f"of the rows are of {source.label}, {taught}"
        if rows is not None:
            seen = spec.schedule.steps * spec.batch.sequences_per_step * source.weight / total
            epochs = f"{seen / rows.training:.2f} epochs over {counted(rows.training, 'row')}"
            words = f"{words}: {epochs}"
        yield "" if index else "sources", f"{source.weight / total:.1%}", words


def _count_lines(counts: DataCounts) -> Iterator[tuple[str, str, str]]:
    """Yields what becomes of the chats, or of the rows of text if some are left out."""
    if counts.labels is None and not counts.unknown:
        return
    yield f"{counts.of}s", f"{counts.training:,}", counts.used()
    if counts.cut:
        yield "", f"{counts.cut:,}", CUT
    for why, count in counts.left_out().items():
        yield "", f"{count:,}", f"left out: {why}"
    if counts.labels is not None:
        yield "", f"{counts.padding:.1%}", "of training positions are padding"
        words = f"of training positions have a label that is learnt: {counts.labels:,}"
        yield "", f"{counts.labels_of_positions:.1%}", words
    if counts.labels_lost:
        yield "", f"{counts.labels_lost:.1%}", "of the learnt labels are in no row"


def _folder(spec: RunSpec, roots: Roots, *, resume: bool) -> Check:
    try:
        return Check("folder", Outcome.PASS, require_folder(spec, roots, resume=resume))
    except LecternError as error:
        return Check.failed("folder", error)


def _estimate(spec: RunSpec, found: Found, looked: dict[str, Any], first_step: int) -> RunEstimate:
    shape = ModelShape(**looked["shape"]) if "shape" in looked else None
    vocab_size = found.student.vocab_size if shape is None else shape.vocab_size
    return estimate_run(
        spec, found.rows, found.teacher, shape, vocab_size, first_step, found.prompts
    )


def _as_json(
    spec: RunSpec,
    checks: list[Check],
    estimate: RunEstimate,
    looked: dict[str, Any],
    free_disk: int,
    *,
    ok: bool,
) -> dict[str, Any]:
    return {
        "ok": ok,
        "spec": spec.model_dump(mode="json"),
        "checks": [check.as_json() for check in checks],
        "estimate": {
            **estimate.numbers(),
            "memory": looked.get("memory"),
            "memory_needed_bytes": looked.get("needed_bytes"),
            "memory_free": looked.get("free"),
            "free_disk_bytes": free_disk,
            "student": looked.get("shape"),
        },
    }


def _lines(
    spec: RunSpec, found: Found, estimate: RunEstimate, looked: dict[str, Any], free_disk: int
) -> Iterator[tuple[str, str, str]]:
    """Yields lines of the estimate: (subject, figure, explanation)."""
    first, steps = estimate.first_step, spec.schedule.steps
    words = f"in {counted(max(0, steps - first), 'step')} of {estimate.tokens_per_step:,}"
    if first:
        words += f"; the run resumes from step {first:,} of {steps:,}"
    yield "tokens", f"{estimate.tokens:,}", words
    if estimate.epochs is not None and found.rows is not None:
        yield "", f"{estimate.epochs:.2f}", f"epochs over {counted(found.rows.training, 'row')}"
    if "shape" in looked:
        trained = looked["shape"]["num_trainable"]
        frozen = looked["shape"]["num_parameters"] - trained
        words = "trainable parameters" + (f"; {frozen:,} more are frozen" if frozen else "")
        yield "student", f"{trained:,}", words
    yield from _wire_lines(spec, found, estimate)
    yield from _memory_lines(spec, looked)
    if estimate.checkpoint_bytes is not None and estimate.disk_bytes is not None:
        yield "disk", size(estimate.checkpoint_bytes), "per checkpoint"
        words = f"for up to {counted(estimate.checkpoints, 'checkpoint')} and the export"
        yield "", size(estimate.disk_bytes), f"{words}; {size(free_disk)} free"
    yield from _time_lines(spec, found, estimate)


def _wire_lines(
    spec: RunSpec, found: Found, estimate: RunEstimate
) -> Iterator[tuple[str, str, str]]:
    if spec.teacher is None or not spec.asks_server:
        return
    wire, kind = estimate.wire, spec.teacher.representation
    if wire is None:
        missing = "the student was not found" if found.teacher else "the teacher did not answer"
        yield "wire", "?", f"unknown: {missing}"
        return
    most = "at most " if wire.at_most else ""
    words = f"per step of {kind}: {most}{wire.bytes_per_token:,} bytes per token"
    yield "wire", size(wire.bytes_per_step), words
    if wire.head_bytes:
        yield "", size(wire.head_bytes), "the teacher's output head, once per machine"


def _memory_lines(spec: RunSpec, looked: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    if "memory" not in looked:
        return
    free, parts, count = looked["free"], dict(looked["memory"]), spec.device.count
    on_host = free["device"] == "cpu"
    answers = parts.pop("answers")
    where = f"on {free['device']}"
    if count > 1:
        where = f"for {count} processes on the CPU" if on_host else f"on each of {count} devices"
    words = f"in tensors, {where}; {size(free['device_bytes'])} free"
    yield "memory", size(looked["needed_bytes"]), words
    each = " of each" if count > 1 and on_host else ""
    for name, num_bytes in parts.items():
        if num_bytes:
            yield "", size(num_bytes), name.replace("_", " ") + each
    if answers:
        host = "" if on_host else f", in host memory; {size(free['host_bytes'])} free"
        yield "", size(answers), f"prefetched teacher answers{each}{host}"


def _time_lines(
    spec: RunSpec, found: Found, estimate: RunEstimate
) -> Iterator[tuple[str, str, str]]:
    unknown = "the student's speed is unknown before the first step"
    if not spec.asks_server:
        yield "time", "?", unknown
    elif spec.teachers is not None:
        asked = f"asked about {estimate.teacher_tokens:,} tokens"
        yield "time", "?", f"not estimated for several teachers, {asked}"
    elif estimate.teacher_hours is None or found.teacher is None:
        yield "time", "?", "the teacher's speed is unknown"
    else:
        speed = found.teacher.measured_tokens_per_second
        yield (
            "time",
            duration(estimate.teacher_hours),
            f"for the teacher only: {estimate.teacher_tokens:,} tokens at {speed:,.0f} a second",
        )
        yield "", "", f"less for cached rows, more if other runs use it too; {unknown}"


def table(lines: list[tuple[str, str, str]]) -> list[str]:
    """Returns aligned lines: subject, right-aligned figure, words."""
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    return [
        f"{subject:<{widths[0]}}  {figure:>{widths[1]}}  {words}".rstrip()
        for subject, figure, words in lines
    ]


def _free_disk(roots: Roots) -> int:
    folder: Path = roots.runs
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
