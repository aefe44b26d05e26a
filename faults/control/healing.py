"""C28: a teacher that comes back after its runs have given it up, and another one in its place."""

from contextlib import ExitStack
from typing import Any

from faults.control.plane import Plane, new_home, plane
from faults.models import write_model
from faults.processes import Server
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import STEPS, TEACHER_HIDDEN, VOCAB_SIZE, Ended, Home

_SLOW = ("unmeasured", "slow-model=0.02")
_REAL_STEP = ("waiting-steps=0.05",)
_BUDGET_SECONDS = 3.0
# It is looked for after 15 s, then after another 30: both, and a run's 120 steps on a busy machine.
_GIVES_UP_SECONDS, _SAYS_SECONDS, _HEALS_SECONDS = 60.0, 60.0, 180.0


def teacher_comes_back(stage: Stage) -> Tally:
    """C28: outlasts the outage budget; then another model answers, at last the right one."""
    tally, home = Tally(), new_home(stage)
    undisturbed = Home(stage).undisturbed()
    other = write_model(stage.folder / "other", vocab_size=VOCAB_SIZE, hidden=TEACHER_HIDDEN)
    with ExitStack() as stack:
        teacher = _started(stage, stack, home.teacher_options)
        address = teacher.address
        words = ("--max-running-runs", "3")
        service = stack.enter_context(plane(stage, home, *words, trainers=_REAL_STEP))
        runs = [_create(service, f"taught-{n}", address) for n in range(stage.tries(3, 1))]
        for run_id in runs:
            if not service.wait_for_steps(run_id, 5):
                raise RuntimeError(f"{run_id} does not train: {service.run(run_id)}")
        teacher.kill()
        for run_id in runs:
            stage.say("the outage budget")
            run = service.wait_for_state(run_id, "interrupted", "failed", seconds=_GIVES_UP_SECONDS)
            ended = (run["state"], run["reason"], run["heals"], run["step"] < STEPS)
            waits = f"the teacher at {address} answers again"
            tally.require(
                ended == ("interrupted", "teacher_unavailable", 0, True)
                and run["resumes_when"] == waits,
                f"{run_id} ended as {ended}, and waits for {run['resumes_when']}",
            )
        if tally.misses:
            return tally
        impostor = _started(stage, stack, ("--model", str(other), "--threads", "1"), address)
        for run_id in runs:
            stage.say("another model")
            run = service.wait_until(run_id, _names_another, _SAYS_SECONDS)
            said = (run["state"], run["heals"], _names_another(run))
            tally.require(
                said == ("interrupted", 0, True),
                f"another model: {run_id} is {said[0]}, and waits for {run['resumes_when']}",
            )
        if tally.misses:
            return tally
        impostor.kill()
        _started(stage, stack, home.teacher_options, address)
        for run_id in runs:
            stage.say("the right teacher")
            run = service.wait_for_state(run_id, "succeeded", "failed", seconds=_HEALS_SECONDS)
            goes = [
                entry["message"] or "" for entry in run["history"] if entry["state"] == "queued"
            ]
            said = (run["state"], run["heals"], run["attempt"])
            tells = any("the teacher answers again" in message for message in goes)
            right = said == ("succeeded", 1, 2) and tells
            if not tally.count(right, f"{run_id} is {said}, after {goes}"):
                continue
            problem = undisturbed.difference(Ended.of(service.folder(run_id)))
            tally.require(not problem, f"{run_id}: {problem}")
    tally.figure = (
        f"given up after {_BUDGET_SECONDS:.0f} s; another model is refused and named; each run "
        "goes on by itself, counted, and ends bit-equal to an undisturbed one"
    )
    return tally


def _create(service: Plane, name: str, address: str) -> str:
    teacher = {"address": address, "outage_budget_seconds": _BUDGET_SECONDS}
    sections: dict[str, Any] = {"schedule": {"warmup_steps": 5}, "objective": {"alpha": 0.25}}
    return service.create(name, STEPS, teacher=teacher, **sections)


def _names_another(run: dict[str, Any]) -> bool:
    return "now it is" in (run["resumes_when"] or "")


def _started(
    stage: Stage, stack: ExitStack, options: tuple[str, ...], address: str | None = None
) -> Server:
    bind = () if address is None else ("--bind", address)
    server = Server(stage.new_folder(), (*bind, *options), _SLOW, stage.sabotage)
    stack.callback(server.kill)
    return server.ready()
