"""C1 to C3: control planes killed while runs train, with trainers, and while they start one."""

import contextlib
import random
import time

import httpx
import psutil

from faults.control.plane import (
    Plane,
    begun,
    body_of,
    end_trainers,
    gaps,
    last_step,
    new_home,
    plane,
    states_of,
    trainers_below,
)
from faults.processes import wait_for
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.courses import Course
from faults.trainer.runs.run import Ended, Home

C1_ADOPTION_SECONDS = 5.0
_REAL_STEP = ("waiting-steps=0.02",)
_LIFE_SECONDS = 0.5
_RUNS = 3
_SECONDS = 60.0  # until a run has ended
_SECTIONS = {"checkpoint": {"every_steps": 50}}


def adopted(stage: Stage) -> Tally:
    """C1: kills the control plane again and again while three runs train for real."""
    tally, home = Tally(), new_home(stage)
    kills = stage.tries(20, 3)
    steps = 60 * kills
    course = Course.tried(stage, home, schedule={"steps": steps, "warmup_steps": 0}, **_SECTIONS)
    slowest = 0.0
    current = Plane(stage, home, trainers=_REAL_STEP)
    try:
        current.ready()
        runs = [current.create(f"real-{number}", steps, **_SECTIONS) for number in range(_RUNS)]
        for run_id in runs:
            if not current.wait_for_steps(run_id, 1):
                raise RuntimeError(f"{run_id} does not train: {current.run(run_id)}")
        before = trainers_below(home)
        for number in range(kills):
            stage.say(f"{number} of {kills} kills")
            time.sleep(_LIFE_SECONDS)
            current.kill()
            made = [last_step(current.folder(run_id).metrics_path) for run_id in runs]
            current = Plane(stage, home, trainers=_REAL_STEP)
            current.ready()
            begun_at = time.monotonic()
            problem = _problem_of_adoption(current, runs, made)
            slowest = max(slowest, time.monotonic() - begun_at)
            if not problem and trainers_below(home) != before:
                problem = f"the trainers were {before} and are {trainers_below(home)}"
            tally.count(not problem, problem)
        for run_id in runs:
            run = current.wait_for_state(run_id, "succeeded", "failed")
            folder = current.folder(run_id)
            tally.require(run["state"] == "succeeded" and run["attempt"] == 1, f"ended as {run}")
            problem = gaps(folder.metrics_path) or course.undisturbed.difference(Ended.of(folder))
            tally.require(not problem, f"{run_id}: {problem}")
    finally:
        current.kill()
        end_trainers(home)
    tally.require_within(slowest, C1_ADOPTION_SECONDS, "adopting three runs")
    tally.figure = (
        f"{_RUNS} runs adopted with the same pids within {1000 * slowest:.0f} ms each time; "
        f"their {steps} steps, metrics and weights bit-equal to an undisturbed run"
    )
    return tally


def _problem_of_adoption(current: Plane, runs: list[str], made: list[int]) -> str:
    """Returns "" once every run is seen to train further in its first attempt."""
    for run_id, step in zip(runs, made, strict=True):
        run = current.wait_for_progress(run_id, step)
        if run["attempt"] != 1 or run["state"] not in ("running", "succeeded"):
            return f"{run_id} is {run['state']}, attempt {run['attempt']}: {run['message']}"
    return ""


def both_killed(stage: Stage) -> Tally:
    """C2: kills the control plane and trainers, in either order, at random moments."""
    tally, home = Tally(), new_home(stage)
    _real_both_killed(stage, home, tally)
    if tally.misses:
        return tally
    draw = random.Random(2)  # noqa: S311 - when to strike
    lives, each = stage.tries(6, 2), 4
    for life in range(lives):
        stage.say(f"{life} of {lives} times")
        with plane(stage, home, "--max-running-runs", "8") as first:
            kinds = ["steady"] * (each - 1) + ["fails"]
            runs = [first.create(kind, 60) for kind in kinds]
            time.sleep(draw.random() * 2)
            if draw.random() < 0.5:
                _kill_trainers(home)
            first.kill()
            _kill_trainers(home)  # those that it started meanwhile
        with plane(stage, home, "--max-running-runs", "8") as second:
            for run_id, kind in zip(runs, kinds, strict=True):
                run = second.wait_for_state(run_id, "succeeded", "failed", seconds=_SECONDS)
                expected = "failed" if kind == "fails" else "succeeded"
                right = run["state"] == expected and (kind == "steady" or run["reason"])
                problem = gaps(second.folder(run_id).metrics_path)
                tally.count(bool(right) and not problem, f"{run_id}: {problem or run['message']}")
    tally.figure = (
        "each run was `interrupted` and went on by itself from its checkpoint, or failed with its "
        "reason; real runs ended bit-equal; metrics without gap or double"
    )
    return tally


def _real_both_killed(stage: Stage, home: Home, tally: Tally) -> None:
    steps, count = 200, stage.tries(2, 1)
    course = Course.tried(stage, home, schedule={"steps": steps, "warmup_steps": 0}, **_SECTIONS)
    with plane(stage, home, trainers=_REAL_STEP) as first:
        runs = [first.create(f"real-{number}", steps, **_SECTIONS) for number in range(count)]
        for run_id in runs:
            first.wait_for_steps(run_id, 70)
        first.kill()
        _kill_trainers(home)
    with plane(stage, home, trainers=_REAL_STEP) as second:
        for run_id in runs:
            run = second.wait_for_state(run_id, "succeeded", "failed", seconds=_SECONDS)
            folder = second.folder(run_id)
            problem = course.undisturbed.difference(Ended.of(folder))
            if run["state"] != "succeeded" or "interrupted" not in states_of(run):
                problem = f"it went through {states_of(run)}: {run['message']}"
            tally.count(not problem, f"{run_id}: {problem}")


def _kill_trainers(home: Home) -> None:
    for pid in trainers_below(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    wait_for(lambda: not trainers_below(home))


# Where it is killed, and the option under which it gets there.
_POINTS = {
    "claimed": "--no-fork-server",
    "spawned": "--no-fork-server",
    "forked": "--fork-server",
    "told": "--fork-server",
}
_IN_A_ROW = 10  # kills, before the runs are brought to their ends
_ROOM = ("--max-running-runs", "16")


def one_trainer_each(stage: Stage) -> Tally:
    """C3: kills the control plane between row and spawn, and between spawn and pid.

    Half of them start trainers by forking.
    """
    tally, home = Tally(), new_home(stage)
    kills, runs, points = stage.tries(200, 10), 0, list(_POINTS)
    for first in range(0, kills, _IN_A_ROW):
        stage.say(f"{first} of {kills} kills")
        for number in range(first, first + _IN_A_ROW):
            _die_at(stage, home, points[number % len(points)])
        ended, problem = _brought_to_ends(stage, home)
        runs += ended
        tally.count(not problem, problem, _IN_A_ROW)
    tally.figure = (
        f"{runs} runs, each with exactly one trainer, in its first attempt; all succeeded"
    )
    return tally


def _die_at(stage: Stage, home: Home, point: str) -> None:
    """Starts a control plane that is killed at its first run, be it an earlier or a new one."""
    dying = Plane(stage, home, (*_ROOM, _POINTS[point]), faults=(f"die-at={point}:1",))
    try:
        if dying.wait_until_up():
            if "--fork-server" in _POINTS[point] and not _wait_for_fork_server(dying):
                raise RuntimeError(f"its fork server is not ready: {dying.log[-1000:]}")
            with contextlib.suppress(httpx.HTTPError):  # it may be killed before it answers
                dying.ready().client.post("/runs", json=body_of("steady", 30))
        if dying.wait() != -9:
            raise RuntimeError(f"it was not killed: {dying.log[-1000:]}")
    finally:
        dying.kill()


def _wait_for_fork_server(started: Plane) -> bool:
    return wait_for(lambda: "fork server ready" in started.log or not started.alive, 30)


def _brought_to_ends(stage: Stage, home: Home) -> tuple[int, str]:
    """Returns how many runs there were, and what was wrong with the first wrong one."""
    problem = ""
    with plane(stage, home, *_ROOM) as last:
        found = [run["id"] for run in last.runs()]
        for run_id in found:
            run = last.wait_for_state(run_id, "succeeded", "failed", seconds=_SECONDS)
            trainers, folder = begun(last.folder(run_id)), last.folder(run_id)
            wrong = gaps(folder.metrics_path, 30)
            if (trainers, run["attempt"], run["state"]) != (1, 1, "succeeded"):
                wrong = f"{trainers} trainers, {run['state']}: {run['message']}"
            problem = problem or (f"{run_id}: {wrong}" if wrong else "")
            last.client.delete(f"/runs/{run_id}")
    return len(found), problem
