"""C5 and C6: the same request many times, and requests that the state of a run does not allow."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx

from faults.control.plane import Plane, body_of, gaps, new_home, plane, states_of
from faults.row import Tally
from faults.stage import Stage

_AT_ONCE = 64
# What may follow what, written down here once more.
_NEXT = {
    "queued": "starting stopped",
    "starting": "running waiting_for_teacher stopping succeeded failed interrupted",
    "running": "starting waiting_for_teacher stopping succeeded failed interrupted",
    "waiting_for_teacher": "starting running stopping succeeded failed interrupted",
    "stopping": "stopped succeeded failed interrupted",
    "stopped": "queued",
    "failed": "queued",
    "interrupted": "queued",
    "succeeded": "queued",
}
_RUNS = 8


def same_key(stage: Stage) -> Tally:
    """C5: one Idempotency-Key, 64 times at once; then with another body."""
    tally, home = Tally(), new_home(stage)
    keys = stage.tries(10, 2)
    with plane(stage, home, "--max-running-runs", "1") as service:
        for number in range(keys):
            stage.say(f"{number} of {keys} keys")
            headers = {"Idempotency-Key": f"key-{number}"}
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                asked = [
                    pool.submit(_post, service, f"run-{number}", headers) for _ in range(_AT_ONCE)
                ]
                answers = [one.result() for one in asked]
            statuses = Counter(answer.status_code for answer in answers)
            made = {answer.headers.get("location") for answer in answers}
            ids = {answer.json().get("id") for answer in answers}
            right = statuses == {202: _AT_ONCE} and made == {f"/runs/{run_id}" for run_id in ids}
            tally.count(
                right and len(ids) == 1, f"{dict(statuses)}, runs {sorted(map(str, ids))}", _AT_ONCE
            )
            other = _post(service, "another", headers)
            tally.count(other.status_code == 422, f"another body: {other.status_code}")
        runs = {run["id"] for run in service.runs()}
        tally.require(len(runs) == keys, f"{len(runs)} runs were made by {keys} keys")
    tally.figure = f"one run for each of {keys} keys, {_AT_ONCE} answers with its id and Location"
    return tally


def _post(service: Plane, name: str, headers: dict[str, str]) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=120) as client:
        url = f"http://{service.address}/runs"
        return client.post(url, json=body_of(name), headers={**service.headers, **headers})


def any_order(stage: Stage) -> Tally:
    """C6: stop, resume, delete and create in any order, in every state, 2,000 times."""
    tally, home = Tally(), new_home(stage)
    steps, draw = stage.tries(2000, 200), random.Random(6)  # noqa: S311 - what to ask
    allowed: Counter[str] = Counter()
    with plane(stage, home, "--max-running-runs", "4", trainers=("stand-in=0.002",)) as service:
        _at_each_moment(service, tally)
        runs: list[str] = []
        for number in range(steps):
            if number % 100 == 0:
                stage.say(f"{number} of {steps} requests")
            if len(runs) < _RUNS:
                kind = draw.choice(["steady", "steady", "fails"])
                runs.append(service.create(kind, draw.choice([5, 100_000])))
            run_id = draw.choice(runs)
            what = draw.choice(["stop", "stop", "resume", "resume", "delete"])
            before = states_of(service.run(run_id))[-1]
            answer = _ask(service, what, run_id)
            problem = _problem_of(answer, what)
            tally.count(not problem, f"{what} of a run that was {before}: {problem}")
            allowed[f"{what} {answer.status_code}"] += 1
            if answer.status_code == 204:
                runs.remove(run_id)
        for run_id in runs:
            problem = _problem_of_history(service, run_id)
            tally.require(not problem, f"{run_id}: {problem}")
    for what in ("stop 202", "stop 409", "resume 202", "resume 409", "delete 204", "delete 409"):
        tally.require(allowed[what] > 0, f"there was no answer {what}")
    told = ", ".join(f"{what} {count} times" for what, count in sorted(allowed.items()))
    tally.figure = f"{told}; no illegal change of state in any history"
    return tally


def _ask(service: Plane, what: str, run_id: str) -> httpx.Response:
    if what == "delete":
        return service.client.delete(f"/runs/{run_id}")
    return service.post(f"/runs/{run_id}/{what}")


def _problem_of(answer: httpx.Response, what: str) -> str:
    """Returns "" for a request that was accepted, or refused with the state that forbids it."""
    if answer.status_code == (204 if what == "delete" else 202):
        return ""
    says = answer.json().get("detail", "") if answer.content else ""
    named = any(state in says for state in (*_NEXT, "resumes by itself", "has nothing more"))
    return "" if answer.status_code == 409 and named else f"{answer.status_code} {says}"


def _problem_of_history(service: Plane, run_id: str) -> str:
    states = states_of(service.run(run_id))
    for before, after in pairwise(states):
        if after != before and after not in _NEXT[before].split():
            return f"{before} became {after}"
    return gaps(service.folder(run_id).metrics_path)


def _at_each_moment(service: Plane, tally: Tally) -> None:
    """Asks for what users ask for at the wrong moment."""
    run_id = service.create("kept")
    service.wait_for_state(run_id, "starting")
    twice = [service.post(f"/runs/{run_id}/stop") for _ in range(2)]
    resumed = service.post(f"/runs/{run_id}/resume")
    run = service.wait_for_state(run_id, "stopped", "failed", "interrupted")
    tally.count(
        [answer.status_code for answer in twice] == [202, 202] and run["state"] == "stopped",
        f"two stops while starting: {[answer.text[:100] for answer in twice]}, {run['state']}",
    )
    while_stopping = resumed.status_code == 409 and "stopp" in resumed.text
    tally.count(while_stopping or resumed.status_code == 202, f"resume while stopping: {resumed}")
    again = service.post(f"/runs/{run_id}/stop")
    tally.count(again.status_code == 202, f"stop of a stopped run: {again.status_code}")
    done = service.create("steady", 5)
    service.wait_for_state(done, "succeeded")
    for what in ("stop", "resume"):
        answer = service.post(f"/runs/{done}/{what}")
        tally.count(answer.status_code == 409, f"{what} after the end: {answer.status_code}")
