"""The stage `evaluate`: measures what a request asks for, suite by suite.

A run of it that was stopped or killed goes on: text batch by batch, code problem by problem.
"""

import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lectern_common.roots import Roots
from lectern_common.spec.suites import AGREEMENT, CODE, PERPLEXITY
from lectern_common.stages.evaluate import EvaluateRequest
from lectern_common.stages.status import Report
from student_trainer.evaluating.code.suite import evaluate_code
from student_trainer.evaluating.harness import evaluate_tasks
from student_trainer.evaluating.report import markdown
from student_trainer.evaluating.scoring import agreement, perplexity
from student_trainer.evaluating.subject import Opener, Subject
from student_trainer.evaluating.texts import HeldOut, held_out_text
from student_trainer.ranks.device import choose_device, device_name
from student_trainer.stop import Stop


def evaluate(
    asked: EvaluateRequest, roots: Roots, work: Path, *, stop: Stop, report: Report
) -> dict[str, Any]:
    """Returns what was measured, as docs/evaluate.md describes; "markdown" is for people.

    Args:
        asked: what to measure, of which model.
        roots: what its names are relative to.
        work: keeps what is done so far; the same call goes on there.
        stop: ends it with StopRequested.
        report: is told how far it is.

    Raises:
        StopRequested: a stop was requested.
        LecternError: something could not be measured; then there is no result at all.
    """
    began = time.monotonic()
    device = choose_device(asked.device)
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        opener = Opener(asked, roots, device, stop, stack)
        subject = opener.subject()
        report(f"evaluating {subject.words} on {device_name(device)}", 0, 0)
        text = None
        if {PERPLEXITY, AGREEMENT} & set(asked.suites):
            text = held_out_text(asked.text, subject, roots, asked.batch_sequences)
        for suite in asked.suites:
            stop.check()
            results |= _measured(suite, asked, opener, subject, text, work, report)
        if asked.tasks:
            results["lm_eval"] = evaluate_tasks(asked, roots, subject, work, stop, report)
    found = {
        "model": {"words": subject.words, **subject.facts},
        "suites": results,
        "request": asked.model_dump(mode="json"),
        "device": device_name(device),
        "torch": torch.__version__,
        "lectern": version("lectern"),
        "seconds": round(time.monotonic() - began, 3),
    }
    return {**found, "markdown": markdown(found)}


def _measured(
    suite: str,
    asked: EvaluateRequest,
    opener: Opener,
    subject: Subject,
    text: HeldOut | None,
    work: Path,
    report: Report,
) -> dict[str, Any]:
    """Returns {suite: what was measured}; {} for the tasks of the harness, which run together."""
    stop = opener.stop
    if suite == PERPLEXITY and text is not None:
        return {suite: perplexity(subject, text, work=work, stop=stop, report=report)}
    if suite == AGREEMENT and text is not None:
        teacher = opener.teacher(subject.vocab_size)
        if teacher is None:
            raise ValueError("agreement is with a teacher")
        options = asked.agreement
        found = agreement(subject, teacher, text, options, work=work, stop=stop, report=report)
        return {suite: found}
    if suite == CODE:
        return {suite: evaluate_code(asked, opener.roots, subject, work, stop, report)}
    return {}
