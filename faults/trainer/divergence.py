"""S8: losses and gradients that are not finite."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course, both_courses
from faults.trainer.runs.run import Trainer, events_of
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState

_STEPS = 12
# A checkpoint after every step, to inspect what a skipped step left.
_SECTIONS = {
    "schedule": {"steps": _STEPS, "warmup_steps": 0},
    "checkpoint": {"every_steps": 1, "keep_last": 100},
    "evaluation": {"every_steps": 6},
}
_KINDS = ("loss", "infinite-loss", "gradient")
# Steps that are not finite: cases that are skipped, and cases that diverge.
_SKIPPED: tuple[tuple[int, ...], ...] = ((4,), (4, 5), (2, 4, 5, 7, 9, 10))
_DIVERGED: tuple[tuple[int, ...], ...] = ((4, 5, 6), (1, 2, 4, 5, 6, 7), (0, 1, 2))


@dataclass(frozen=True)
class _Try:
    course: Course
    kind: str
    steps: tuple[int, ...]
    diverges: bool

    @property
    def fault(self) -> str:
        return f"not-finite={self.kind}:{','.join(map(str, self.steps))}"


def not_finite(stage: Stage) -> Tally:
    """S8: loss or gradient of some steps is NaN or infinite: one, two in a row, three in a row."""
    tally = Tally()
    with both_courses(stage, **_SECTIONS) as both:
        tries = [
            _Try(course, kind, steps, diverges)
            for course in both
            for kind in _KINDS
            for cases, diverges in ((_SKIPPED, False), (_DIVERGED, True))
            for steps in cases
        ][:: stage.tries(1, 5)]

        def tried(one: _Try) -> str:
            stage.say(one.fault)
            return _tried(stage, one)

        with ThreadPoolExecutor(2) as pool:
            for one, problem in zip(tries, pool.map(tried, tries), strict=True):
                tally.count(not problem, f"{one.fault}: {problem}")
    tally.figure = (
        "each step is skipped and counted, without effect on weights and moments; after three in "
        "a row the run fails (diverged), naming its last checkpoint, which is intact"
    )
    return tally


def _tried(stage: Stage, one: _Try) -> str:
    folder = one.course.begin()
    trainer = Trainer(stage, one.course.home, folder, forked=True, faults=(one.fault,))
    try:
        exit_status = trainer.wait()
    finally:
        trainer.kill()
    problem = _ended_well(trainer, one) if one.diverges else trainer.end()
    if problem:
        return f"status {exit_status}: {problem}"
    made = one.steps if not one.diverges else [step for step in one.steps if step <= _last(one)]
    told = [event["step"] for event in events_of(folder, "step_skipped")]
    if told != list(made):
        return f"it reported {told} as skipped"
    return _wrong_effect(folder, set(made)) or _wrong_lines(folder, set(made))


def _last(one: _Try) -> int:
    """Returns the third step in a row without a finite loss."""
    return next(step for step in one.steps if {step - 1, step - 2} <= set(one.steps))


def _ended_well(trainer: Trainer, one: _Try) -> str:
    status, newest = trainer.status, checkpoints.newest_step(trainer.folder)
    if status is None or (status.state, status.reason) != (RunState.FAILED, "diverged"):
        return f"its status is {status}"
    named = f"the last checkpoint is of step {newest}" if newest else "there is no checkpoint"
    if named not in str(status.message) or newest != _last(one):
        return f"the newest checkpoint is of step {newest}; it says {status.message}"
    return checkpoints.first_problem(trainer.folder)


def _wrong_effect(folder: RunFolder, skipped: set[int]) -> str:
    """Returns the first step with an effect that it should not have, or without its effect."""
    found = {checkpoints.step_of(path): path for path in checkpoints.visible(folder)}
    for step in range(1, max(found)):
        if step in found and (_tensors(found[step]) == _tensors(found[step + 1])) != (
            step in skipped
        ):
            return f"step {step} {'had' if step in skipped else 'had no'} effect"
    return ""


def _tensors(checkpoint: Path) -> list[bytes]:
    names = ("model.safetensors", "optimizer.safetensors")
    return [(checkpoint / name).read_bytes() for name in names]


def _wrong_lines(folder: RunFolder, skipped: set[int]) -> str:
    """Returns the first line of metrics that is wrong about skipped steps or their count."""
    for line in read_json_lines(folder.metrics_path):
        step = line["step"] - 1  # steps count from 0 here
        if "loss/total" not in line:
            continue
        finite = line["loss/total"] is not None and line["optim/grad_norm"] is not None
        finite = finite and math.isfinite(line["loss/total"])
        if finite == (step in skipped):
            return f"the metrics of step {step} are {line}"
        if line["optim/skipped_steps"] != len([s for s in skipped if s <= step]):
            return f"after step {step} it counts {line['optim/skipped_steps']} skipped steps"
    return ""
