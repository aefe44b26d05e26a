"""S12 and S14: what a run records while the clock jumps, and while metrics are slow."""

import json
import random
from typing import Any

from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course, both_courses
from faults.trainer.runs.run import Ended, Home, Trainer, events_of
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder

_SECTIONS = {
    "schedule": {"steps": 120},
    "checkpoint": {"every_steps": 20},
    "evaluation": {"every_steps": 40},
}
_BACK_SECONDS = 3600


def clock_jumps(stage: Stage) -> Tally:
    """S12: the clock jumps back an hour twice a second; each run is killed and resumed."""
    tally = Tally()
    draw = random.Random(0)  # noqa: S311 - when to strike
    with both_courses(stage, **_SECTIONS) as both:
        for number in range(stage.tries(3, 1)):
            for course in both:
                stage.say(f"run {number + 1}")
                problem = _through_jumps(stage, course, draw.randrange(25, 100))
                tally.count(not problem, problem)
    tally.figure = (
        f"clock set back {_BACK_SECONDS} s twice a second: no negative duration, steps in order, "
        "resumed at the newest checkpoint; bit-equal"
    )
    return tally


def _through_jumps(stage: Stage, course: Course, kill_at: int) -> str:
    folder = course.begin()
    faults = (f"clock-back={_BACK_SECONDS}", "waiting-steps=0.01")
    for options in ((), ("--resume",)):
        newest = checkpoints.newest_step(folder)
        trainer = Trainer(stage, course.home, folder, options, forked=True, faults=faults)
        try:
            if not options:
                trainer.wait_for_step(kill_at, 60)
                trainer.kill()
            else:
                problem = course.problem_of_end(trainer)
        finally:
            trainer.kill()
    started = events_of(folder, "assembled")[-1]["step"]
    if started != newest:
        return f"it continued from step {started}; expected {newest}"
    status = trainer.status
    if status is None or status.since > status.heartbeat:
        return f"its state began after its last heartbeat: {status}"
    return problem or _below_zero(folder)


def _below_zero(folder: RunFolder) -> str:
    """Returns the first negative duration or speed that a run has written, or ""."""
    lines = read_json_lines(folder.metrics_path)
    states = [json.loads((p / "state.json").read_bytes()) for p in checkpoints.visible(folder)]
    timed = [
        (name, value)
        for line in [*lines, *(state["record"] for state in states)]
        for name, value in line.items()
        if name.startswith(("time/", "perf/")) and value is not None and not value >= 0
    ]
    if timed:
        return f"{timed[0][0]} is {timed[0][1]}"
    walls = [state["wall_seconds"] for state in states]
    return "" if walls == sorted(walls) and min(walls) > 0 else f"wall_seconds are {walls}"


_LINE_SECONDS = 0.1
_WAITING_LINES = 10
_S14_SECTIONS = {
    "schedule": {"steps": 400},
    "checkpoint": {"every_steps": 10_000},
    "evaluation": {"every_steps": 1_000},
}
# Limit relative to an undisturbed loop; a loop that waits would take many times longer.
S14_TIMES = 2.5


def slow_telemetry(stage: Stage) -> Tally:
    """S14: writing one line of metrics takes longer than ten steps."""
    tally = Tally()
    course = Course.tried(stage, Home(stage), **_S14_SECTIONS)
    tensors = course.undisturbed.tensors
    slowest = 0.0
    dropped = []
    for number in range(stage.tries(5, 2)):
        stage.say(f"run {number + 1}")
        in_peace = course.begin()
        Trainer(stage, course.home, in_peace, forked=True).end()
        folder = course.begin()
        fault = f"stalled-metrics={_LINE_SECONDS}:{_WAITING_LINES}"
        trainer = Trainer(stage, course.home, folder, forked=True, faults=(fault,))
        try:
            problem = trainer.end()
        finally:
            trainer.kill()
        ended = Ended.of(folder)
        lost = _S14_SECTIONS["schedule"]["steps"] + 1 - len(ended.lines)
        counted = max((e["lines"] for e in events_of(folder, "metrics_dropped")), default=0)
        dropped.append(counted)
        own = [line for line in course.undisturbed.lines if line in ended.lines]
        problem = problem or (
            f"{lost} lines are missing but {counted} were counted" if lost != counted else ""
        )
        problem = problem or ("no line was dropped: the loop waited" if not lost else "")
        problem = problem or ("lines differ" if len(own) != len(ended.lines) else "")
        tally.count(not problem and ended.tensors == tensors, problem or "the weights differ")
        slowest = max(slowest, _loop_seconds(folder) / _loop_seconds(in_peace))
    if slowest > S14_TIMES:
        tally.late.append(f"the loop took {slowest:.1f} times as long; the limit is {S14_TIMES}")
    tally.figure = (
        f"{1000 * _LINE_SECONDS:.0f} ms per line: the loop takes at most {slowest:.2f} of its "
        f"undisturbed time; {min(dropped)} to {max(dropped)} lines dropped, all counted; weights "
        "bit-equal"
    )
    return tally


def _loop_seconds(folder: RunFolder) -> float:
    """Returns how long the loop of a run took, without what followed it."""
    state: dict[str, Any] = json.loads(
        (checkpoints.visible(folder)[-1] / "state.json").read_bytes()
    )
    return float(state["wall_seconds"])
