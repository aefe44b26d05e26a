"""S5: trainers that get a stop signal, once and twice."""

import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from faults.row import Tally
from faults.stage import Stage
from faults.trainer.injections import COMPUTING, SAVING_NAME
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course, both_courses
from faults.trainer.runs.run import Trainer
from lectern_common.run.status import RunState

S5_STOP_SECONDS = 30.0
S5_SECOND_SIGNAL_SECONDS = 1.0
_SECTIONS = {
    "schedule": {"steps": 60},
    "checkpoint": {"every_steps": 20},
    "evaluation": {"every_steps": 20},
}
_STEP = "waiting-steps=0.01"


@dataclass(frozen=True)
class Request:
    """When a trainer gets a stop signal.

    Attributes:
        moment: description for people.
        faults: faults that make the moment last.
        is_there: returns true once the moment has come.
        twice: a second signal follows, which ends the trainer.
    """

    moment: str
    is_there: Callable[[Trainer, random.Random], object]
    faults: tuple[str, ...] = (_STEP,)
    twice: bool = False


def _locked(trainer: Trainer, _draw: random.Random) -> object:
    return trainer.status_is(RunState.STARTING)


def _at_a_step(trainer: Trainer, draw: random.Random) -> object:
    return trainer.wait_for_step(draw.randrange(1, 50), 60)


def _in_a_save(trainer: Trainer, _draw: random.Random) -> object:
    return (trainer.folder.path / SAVING_NAME).exists()


def _computes(trainer: Trainer, _draw: random.Random) -> object:
    return COMPUTING in trainer.log


def _waits(trainer: Trainer, _draw: random.Random) -> object:
    return trainer.status_is(RunState.RUNNING)


def _made(trainer: Trainer, _draw: random.Random) -> object:
    return trainer.steps() >= 60


_REQUESTS = (
    Request("at the start", _locked),
    *(Request("in a step", _at_a_step) for _ in range(3)),
    Request("in a long computation", _computes, ("deaf-steps=3",)),
    Request("waiting for its teacher", _waits, ("waiting-steps=3600",)),
    Request("in a save", _in_a_save, (_STEP, "slow-saves=0.005")),
    Request("after the last step", _made),
    Request("in a computation without end", _computes, ("deaf-steps=3600",), twice=True),
    Request("in a slow save", _in_a_save, (_STEP, "slow-saves=0.1"), twice=True),
)


def stopped(stage: Stage) -> Tally:
    """S5: SIGTERM and SIGINT at every kind of moment, once and twice; each run is resumed."""
    tally = Tally()
    with both_courses(stage, **_SECTIONS) as both:
        requests = _REQUESTS[:: stage.tries(1, 3)]
        tries = [
            (course, request, number)
            for course, number in zip(both, (signal.SIGTERM, signal.SIGINT), strict=True)
            for request in requests
        ]

        def tried(entry: tuple[Course, Request, signal.Signals]) -> tuple[str, float]:
            course, request, number = entry
            stage.say(f"{number.name} {request.moment}")
            return _stopped(stage, course, request, number)

        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(tried, tries))
    for (_, request, number), (problem, _) in zip(tries, ended, strict=True):
        tally.count(not problem, f"{number.name} {request.moment}: {problem}")
    once, twice = (
        max(took for (_, request, _), (_, took) in zip(tries, ended, strict=True) if of(request))
        for of in (lambda request: not request.twice, lambda request: request.twice)
    )
    tally.require_within(once, S5_STOP_SECONDS, "a stop")
    tally.require_within(twice, S5_SECOND_SIGNAL_SECONDS, "ending at the second signal")
    tally.figure = (
        f"checkpointed at the step boundary and `stopped` within {once:.1f} s; a second signal "
        f"ends it within {1000 * twice:.0f} ms; bit-equal once resumed"
    )
    return tally


def _stopped(
    stage: Stage, course: Course, request: Request, number: signal.Signals
) -> tuple[str, float]:
    """Returns what went wrong, and the seconds from the last signal to the end."""
    folder = course.begin()
    trainer = Trainer(stage, course.home, folder, forked=True, faults=request.faults)
    draw = random.Random(0)  # noqa: S311 - when to ask
    try:
        if trainer.wait_until(lambda: request.is_there(trainer, draw), 60) is None:
            return "the moment did not come", 0.0
        trainer.signal(number)
        if request.twice:
            trainer.wait_until(lambda: trainer.status_is(RunState.STOPPING), 10)
            trainer.signal(signal.SIGINT)
        begun = time.monotonic()
        exit_status = trainer.wait(2 * S5_STOP_SECONDS)
        seconds = time.monotonic() - begun
        problem = _how(trainer, exit_status, twice=request.twice)
    finally:
        trainer.kill()
    resumed = Trainer(stage, course.home, folder, ("--resume",), forked=True)
    try:
        return problem or course.problem_of_end(resumed), seconds
    finally:
        resumed.kill()


def _how(trainer: Trainer, exit_status: int | None, *, twice: bool) -> str:
    """Returns "" if a trainer ended as it should after a stop signal."""
    status, newest = trainer.status, checkpoints.newest_step(trainer.folder)
    broken = checkpoints.first_problem(trainer.folder)
    if twice:
        return broken or ("" if exit_status == 75 else f"it exited with status {exit_status}")
    if exit_status != 0 or status is None:
        return f"it exited with status {exit_status} and state {status}"
    if trainer.status_is(RunState.SUCCEEDED) and status.step == status.steps:
        return broken
    if (status.state, status.reason) != (RunState.STOPPED, "stopped"):
        return f"its status is {status}"
    if status.step != newest or trainer.steps() != newest:
        return f"it made {status.step} steps but has a checkpoint of step {newest}"
    return broken
