"""L1 and L2: runs as jobs of a real Slurm, under kills of the control plane, requeues and outages.

The Slurm is this machine's own, started for the row (cluster.py).
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import httpx

from faults.control.plane import Plane, begun, body_of, gaps, new_home
from faults.launchers.cluster import Cluster, cluster
from faults.processes import wait_for
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import Home
from lectern_common.run.folder import RunFolder

_POINTS = ("claimed", "submitting", "submitted")
_IN_A_ROW = 10
_STEPS = 30
_SECONDS = 180.0  # until a run has ended
_REQUEUED_STEPS = 1000
_OUTAGE_SECONDS = 12.0


def one_job_each(stage: Stage) -> Tally:
    """L1: kills the control plane before, during and after it submits a job."""
    tally, kills, runs = Tally(), stage.tries(50, 6), 0
    with cluster(stage.new_folder()) as site:
        for first in range(0, kills, _IN_A_ROW):
            home, count = new_home(stage), min(_IN_A_ROW, kills - first)
            stage.say(f"{first} of {kills} kills")
            for number in range(first, first + count):
                _die_at(stage, site, home, _POINTS[number % len(_POINTS)])
            ended, problem = _brought_to_ends(stage, site, home)
            runs += ended
            tally.count(not problem, problem, count)
    tally.figure = f"{runs} runs, each with one job and one trainer, all in their first attempt"
    return tally


def requeued_and_away(stage: Stage) -> Tally:
    """L2: requeues jobs while their runs train, and stops the controller for a while."""
    tally, home, count = Tally(), new_home(stage), stage.tries(10, 3)
    with cluster(stage.new_folder()) as site, _plane(stage, site, home) as plane:
        runs = []
        for number in range(count):
            stage.say(f"{number} of {count} runs requeued")
            runs.append(run_id := plane.create("steady", _REQUEUED_STEPS))
            plane.wait_for_steps(run_id, 10)
            site.preempt(jobs_of(site, run_id)[0])
            waits = plane.wait_until(run_id, _is_pending, 60)
            tally.count(_is_pending(waits), f"{run_id} says {waits['message']!r}")
        for run_id in runs:
            wait_for(functools.partial(_has_begun_again, plane.folder(run_id)))
        stage.say("the controller is away")
        site.stop_controller()
        time.sleep(_OUTAGE_SECONDS)
        states = {(run["id"], run["state"]) for run in plane.runs()}
        known = {state for _, state in states} <= {"running", "starting", "succeeded"}
        tally.require(known, f"while the controller is away: {states}")
        site.start_controller()
        for run_id in runs:
            run = plane.wait_for_state(run_id, "succeeded", "failed", seconds=_SECONDS)
            wrong = gaps(plane.folder(run_id).metrics_path, _REQUEUED_STEPS)
            if (run["state"], run["attempt"]) != ("succeeded", 1):
                wrong = f"{run['state']}, attempt {run['attempt']}: {run['message']}"
            tally.count(not wrong, f"{run_id}: {wrong}")
    tally.figure = (
        f"{count} runs requeued, resumed by the same job at their checkpoints, without a gap; "
        f"{_OUTAGE_SECONDS:g} s without a controller changed nothing"
    )
    return tally


def _is_pending(run: dict[str, Any]) -> bool:
    return "PENDING" in (run["message"] or "")


def _has_begun_again(folder: RunFolder) -> bool:
    return begun(folder) > 1


def jobs_of(site: Cluster, run_id: str) -> list[str]:
    """Returns the numbers of all jobs of a run that Slurm remembers."""
    words = ("squeue", "--noheader", "--states=all", "--format=%i %j")
    lines = [line.split() for line in site.ask(*words).splitlines()]
    return [number for number, name in lines if name.startswith(f"lectern-{run_id}-")]


def _made(stage: Stage, site: Cluster, home: Home, *faults: str) -> Plane:
    wanted = ("PATH", "SLURM_CONF")
    where = [f"environment={name}={site.environment[name]}" for name in wanted]
    return Plane(stage, home, ("--launcher", "slurm"), faults=(*where, *faults))


@contextlib.contextmanager
def _plane(stage: Stage, site: Cluster, home: Home) -> Iterator[Plane]:
    made = _made(stage, site, home)
    try:
        yield made.ready()
    finally:
        made.kill()


def _die_at(stage: Stage, site: Cluster, home: Home, point: str) -> None:
    """Starts a control plane that is killed at its first job, of an earlier run or a new one."""
    dying = _made(stage, site, home, f"die-at={point}:1")
    try:
        if dying.wait_until_up():
            with contextlib.suppress(httpx.HTTPError):  # it may be killed before it answers
                dying.ready().client.post("/runs", json=body_of("steady", _STEPS))
        if dying.wait() != -9:
            raise RuntimeError(f"it was not killed: {dying.log[-1000:]}")
    finally:
        dying.kill()


def _brought_to_ends(stage: Stage, site: Cluster, home: Home) -> tuple[int, str]:
    """Returns how many runs there were, and what was wrong with the first wrong one."""
    problem = ""
    with _plane(stage, site, home) as last:
        found = [run["id"] for run in last.runs()]
        for run_id in found:
            run = last.wait_for_state(run_id, "succeeded", "failed", seconds=_SECONDS)
            folder, jobs = last.folder(run_id), len(jobs_of(site, run_id))
            wrong = gaps(folder.metrics_path, _STEPS)
            if (begun(folder), jobs, run["attempt"], run["state"]) != (1, 1, 1, "succeeded"):
                wrong = (
                    f"{jobs} jobs, {begun(folder)} trainers, attempt {run['attempt']}, "
                    f"{run['state']}: {run['message']}"
                )
            problem = problem or (f"{run_id}: {wrong}" if wrong else "")
    return len(found), problem
