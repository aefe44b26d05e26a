"""C20 to C24: what days bring: stepped clocks, other releases, statuses gone wrong."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from faults.control.plane import (
    Plane,
    end_trainers,
    gaps,
    new_home,
    plane,
    trainers_below,
)
from faults.processes import wait_for
from faults.row import Tally
from faults.stage import Stage

C22_GROWTH = 1.05
_STALE_SECONDS = 15.0
_HOUR = 3600.0


def blind(stage: Stage) -> Tally:
    """C20: for a while the control plane can look at no process; one trainer hangs meanwhile."""
    tally, home = Tally(), new_home(stage)
    sign = stage.new_folder() / "blind"
    with plane(stage, home, faults=(f"blind={sign}",)) as service:
        runs = [service.create("steady") for _ in range(3)]
        for run_id in runs:
            service.wait_for_steps(run_id, 5)
            service.wait_for_state(run_id, "running")
        hung = next(pid for pid, run_id in service.trainers().items() if run_id == runs[0])
        sign.touch()
        os.kill(hung, signal.SIGSTOP)
        try:
            stale = service.wait_until(runs[0], lambda run: run["stale_since"], 60)
            others = [service.run(run_id) for run_id in runs]
            tally.count(bool(stale["stale_since"]), "nothing says that the run is silent")
            for run in others:
                right = (run["state"], run["attempt"]) == ("running", 1)
                tally.count(right, f"{run['id']} is {run['state']}: {run['message']}")
        finally:
            os.kill(hung, signal.SIGCONT)
            sign.unlink()
        for run_id in runs:
            made = service.run(run_id)["step"]
            run = service.wait_until(run_id, _goes_on_after(made), 60)
            right = run["step"] > made and not run["stale_since"] and run["attempt"] == 1
            if not tally.count(right, f"afterwards {run_id} is {run['state']}: {run['message']}"):
                break
            service.post(f"/runs/{run_id}/stop")
            run = service.wait_for_state(run_id, "stopped", "interrupted", "failed")
            problem = gaps(service.folder(run_id).metrics_path, run["step"])
            tally.count(run["state"] == "stopped" and not problem, f"{run_id}: {problem}")
    tally.figure = "the last state stayed, with the time since which it is stale; no run was lost"
    return tally


def other_releases(stage: Stage) -> Tally:
    """C21: trainers of the release before, and of a later one, whose status has another version."""
    tally = Tally()
    for _ in range(stage.tries(5, 1)):
        home = new_home(stage)
        first = Plane(stage, home)
        try:
            first.ready()
            old, new = first.create("old", 400), first.create("new", 400)
            first.wait_for_steps(old, 5)
            first.wait_for_steps(new, 5)
            before = trainers_below(home)
        finally:
            first.kill()
        with plane(stage, home) as second:
            tally.count(trainers_below(home) == before, "a trainer was ended or doubled")
            run = second.wait_until(old, lambda run: run["step"] > 5, 30)
            right = run["state"] in ("running", "succeeded") and run["attempt"] == 1
            tally.count(right, f"the older one is {run['state']}: {run['message']}")
            said = second.wait_until(new, lambda run: "version 99" in str(run["message"]), 15)
            tally.count("version 99" in str(said["message"]), f"it says {said['message']!r}")
            listed = second.client.get("/runs").status_code
            tally.count(listed == 200, f"GET /runs: {listed}")
            end = second.wait_for_state(old, "succeeded", "failed")
            problem = gaps(second.folder(old).metrics_path, 400)
            tally.count(end["state"] == "succeeded" and not problem, f"{problem or end['message']}")
    tally.figure = "the older one is adopted and understood; of the later one its run says why not"
    return tally


def soak(stage: Stage) -> Tally:
    """C22: create, stop, resume and delete, over and over; what the process holds must stay."""
    tally, home = Tally(), new_home(stage)
    warm, cycles = stage.tries(15, 3), stage.tries(60, 6)
    with plane(stage, home, trainers=("stand-in=0.002",)) as service:
        for _ in range(warm):
            _cycle(service, tally)
        # From now on all threads and database connections are there that it keeps for good.
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda _: service.runs(), range(stage.tries(1000, 200))))
        before = _held(service)
        for number in range(cycles):
            stage.say(f"{number} of {cycles} cycles")
            _cycle(service, tally)
        after = _held(service)
    tally.require(after["zombies"] == 0, f"{after['zombies']} zombies are left")
    for name in ("descriptors", "threads", "memory"):
        allowed = before[name] * C22_GROWTH + (1 if name != "memory" else 0)
        tally.require(after[name] <= allowed, f"{name} went from {before[name]} to {after[name]}")
    tally.figure = f"after {warm} cycles and {cycles} more: " + ", ".join(
        f"{name} {before[name]} and {after[name]}" for name in before
    )
    return tally


def _cycle(service: Plane, tally: Tally) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(service.client.stream("GET", "/events"))
        kept = service.create("steady")
        done = service.create("steady", 10)
        service.wait_until(kept, lambda run: run["step"] > 5)
        service.post(f"/runs/{kept}/stop")
        stopped = service.wait_for_state(kept, "stopped", "interrupted", "failed")
        service.post(f"/runs/{kept}/resume")
        resumed = service.wait_until(kept, lambda run: run["step"] > stopped["step"])
        service.post(f"/runs/{kept}/stop")
        again = service.wait_for_state(kept, "stopped", "interrupted", "failed")
        ended = service.wait_for_state(done, "succeeded", "failed")
        states = [stopped["state"], resumed["state"], again["state"], ended["state"]]
        right = states[0] == states[2] == "stopped" and states[3] == "succeeded"
        tally.count(right, f"a cycle went through {states}")
        for run_id in (kept, done):
            service.client.delete(f"/runs/{run_id}")


def _held(service: Plane) -> dict[str, int]:
    # Connections that this program has left open are closed after some seconds.
    wait_for(lambda: not _has_connections(service.pid))
    usage = service.usage()
    children = psutil.Process(service.pid).children()
    zombies = sum(child.status() == psutil.STATUS_ZOMBIE for child in children)
    return {
        "descriptors": usage.descriptors,
        "threads": usage.threads,
        "memory": usage.memory_bytes >> 20,
        "zombies": zombies,
    }


def _has_connections(pid: int) -> bool:
    found = psutil.Process(pid).net_connections("tcp")
    return any(one.status != psutil.CONN_LISTEN for one in found)


def stepped_clock(stage: Stage) -> Tally:
    """C23: the clock steps an hour, either way, under a control plane and across its restart."""
    tally = Tally()
    for _ in range(stage.tries(3, 1)):
        for step in (_HOUR, -_HOUR):
            for restarted in (False, True):
                stage.say(f"{step:+.0f} s, {restarted=}")
                problem = _problem_of_step(stage, step, restarted=restarted)
                told = "across a restart" if restarted else "while it runs"
                tally.count(not problem, f"{step:+.0f} s {told}: {problem}")
    tally.figure = (
        "no trainer taken for gone, none killed early, none stuck: one ends by itself, one stops "
        "in its own time, one that is deaf is killed after its grace"
    )
    return tally


def _problem_of_step(stage: Stage, step: float, *, restarted: bool) -> str:
    home, clock = new_home(stage), stage.new_folder() / "clock"
    clock.write_text("0")

    def started() -> Plane:
        stepped = f"clock={clock}"
        grace = ("--stop-grace-seconds", "3")
        return Plane(stage, home, grace, faults=(stepped,), trainers=(stepped, "stand-in=0.01"))

    service = started()
    try:
        service.ready()
        runs = [service.create("steady", 600), service.create("steady"), service.create("deaf")]
        for run_id in runs:
            service.wait_for_state(run_id, "running")
        before = trainers_below(home)
        if restarted:
            service.kill()
        clock.write_text(str(step))
        if restarted:
            service = started()
            service.ready()
        time.sleep(2)  # a few looks
        if trainers_below(home) != before:
            return f"the trainers were {before} and are {trainers_below(home)}"
        for run_id in runs[1:]:
            service.post(f"/runs/{run_id}/stop")
        for run_id, end in zip(runs, ("succeeded", "stopped", "interrupted"), strict=True):
            run = service.wait_for_state(
                run_id, "succeeded", "stopped", "interrupted", "failed", seconds=30
            )
            if (run["state"], run["attempt"]) != (end, 1):
                return f"{run_id} is {run['state']}, attempt {run['attempt']}: {run['message']}"
            problem = gaps(service.folder(run_id).metrics_path)
            if problem:
                return f"{run_id}: {problem}"
        return ""
    finally:
        service.kill()
        end_trainers(home)


_MIB = 1 << 20
# Whole contents of status.json, or fields to add to a right one.
_STATUSES = {
    "no identity": '{+ "pid": null, "process_create_time": null, "start_ticks": null}',
    "a fraction of a step": '{+ "step": 1.5}',
    "a step below zero": '{+ "step": -1}',
    "a step of 100 digits": '{+ "step": ' + "9" * 100 + "}",
    "text as a metric": '{+ "latest": {"loss/val": "x"}}',
    "a list as metrics": '{+ "latest": [1, 2]}',
    "NaN": '{+ "tokens_per_second": NaN, "since": Infinity}',
    "an unknown state": '{+ "state": "dancing"}',
    "a state of another kind": '{+ "state": ["running"]}',
    "50 MB of message": '{+ "message": "' + "x" * (50 * _MIB) + '"}',
    "a million metrics": '{+ "latest": {' + ", ".join(f'"m/{n}": 1' for n in range(200_000)) + "}}",
    "a deep value": '{+ "latest": ' + "[" * 5000 + "]" * 5000 + "}",
    "a lone surrogate": '{+ "message": "\\ud800"}',
    "no JSON": "\x00\xff rubbish",
    "a list": "[]",
    "null": "null",
    "nothing": "",
    "another's run_id": '{+ "run_id": "../../etc"}',
    "a version as text": '{+ "version": "one"}',
}
# What is read in another form is no trouble: the run shows this instead. Nobody asks a status whose
# it is.
_SHOWN = {"a lone surrogate": "?", "another's run_id": ""}


def wrong_statuses(stage: Stage) -> Tally:
    """C24: trainers that write wrong types, NaN and 50 MB; beside each, another run trains."""
    tally, home = Tally(), new_home(stage)
    with plane(stage, home, "--max-running-runs", "4") as service:
        kept = service.create("steady")
        service.wait_for_steps(kept, 5)
        database = service.database.stat().st_size
        kinds = list(_STATUSES.items())[:: stage.tries(1, 4)]
        for number, (kind, text) in enumerate(kinds):
            stage.say(kind)
            (home.path / f"says-{number}.status").write_text(text, errors="surrogateescape")
            shown = _SHOWN.get(kind, "status")
            problem = _problem_beside(service, kept, f"says-{number}", shown)
            if not tally.count(not problem, f"{kind}: {problem}") and len(tally.misses) == 3:
                break
        service.post(f"/runs/{kept}/stop")
        run = service.wait_for_state(kept, "stopped", "interrupted", "failed")
        problem = gaps(service.folder(kept).metrics_path, run["step"])
        tally.require(run["state"] == "stopped" and not problem, f"its neighbour: {run['message']}")
        wal = service.database.with_name(service.database.name + "-wal")
        grown = service.database.stat().st_size - database + wal.stat().st_size
        tally.require(grown < 16 * _MIB, f"the database grew by {grown // _MIB} MiB")
    tally.figure = (
        f"{len(kinds)} kinds: list, stream, loop and the run beside it went on; the run itself "
        f"says so; database +{grown // 1024} KB"
    )
    return tally


def _goes_on_after(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda run: run["step"] > step and not run["stale_since"]


def _problem_beside(service: Plane, kept: str, name: str, shown: str) -> str:
    """Returns "" if a run with a wrong status harms only itself, says so, and can be stopped."""
    before = service.run(kept)["step"]
    run_id = service.create(name, 30_000)  # it does not end by itself
    service.wait_for_steps(run_id, 1, 30)
    time.sleep(1.5)  # two looks at least
    listed = service.client.get("/runs")
    if listed.status_code != 200 or len(listed.content) > _MIB:
        return f"GET /runs: {listed.status_code}, {len(listed.content)} bytes"
    answer = service.client.get(f"/runs/{run_id}")
    if answer.status_code != 200:
        return f"GET of the run: {answer.status_code}"
    with service.client.stream("GET", "/events?after=0") as stream:
        size = sum(len(piece) for piece, _ in zip(stream.iter_raw(), range(20), strict=False))
    if size > _MIB:
        return f"the stream of all runs sends {size} bytes"
    if service.wait_until(kept, lambda run: run["step"] > before, 15)["step"] <= before:
        return "the run beside it is no longer looked after"
    said = service.wait_until(run_id, lambda run: shown in str(run["message"]), 15)["message"]
    service.post(f"/runs/{run_id}/stop")
    end = service.wait_for_state(
        run_id, "stopped", "interrupted", "failed", "succeeded", seconds=30
    )
    if end["state"] not in ("stopped", "interrupted", "failed", "succeeded"):
        return f"it cannot be stopped; it is {end['state']}"
    return "" if shown in str(said) else f"it says {said!r}, {end['message']!r}"
