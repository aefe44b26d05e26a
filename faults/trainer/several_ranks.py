"""S10 and S11: runs resumed on a different number of ranks, and ranks that die."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs import checkpoints
from faults.trainer.runs.courses import Course, both_courses
from faults.trainer.runs.run import Ended, Home, Trainer, events_of
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.spec.load import parse_spec

_SECTIONS = {
    "schedule": {"steps": 60},
    "checkpoint": {"every_steps": 10},
    "evaluation": {"every_steps": 30},
}
# So that there is time to strike.
_SLOW = ("waiting-steps=0.05",)
_CLOSE = 1e-5
S11_END_SECONDS = 60.0


def other_ranks(stage: Stage) -> Tally:
    """S10: runs continue on one rank, two and one; the last time in another home folder."""
    tally = Tally()
    furthest = 0.0
    with both_courses(stage, **_SECTIONS) as both:
        for number, course in enumerate(both[: stage.tries(2, 1)]):
            folder, home, problem = course.begin(), course.home, ""
            for count, until in ((1, 15), (2, 35), (1, None)):
                stage.say(f"{count} ranks")
                if until is None:
                    folder, home = _moved(folder, stage.folder / f"moved-{number}")
                problem = problem or _went_on(stage, home, folder, count, until)
            problem = problem or _absolute_path(folder, course.home.path)
            apart = _furthest_apart(course.undisturbed, Ended.of(folder))
            furthest = max(furthest, apart)
            problem = problem or ("" if apart <= _CLOSE else f"losses are {apart:.1e} apart")
            tally.count(not problem, problem, 2)
    tally.figure = (
        f"1 -> 2 -> 1 ranks, the last in another folder: losses within {furthest:.0e} of the "
        "undisturbed run's, no step twice, no path in the state"
    )
    return tally


def _went_on(stage: Stage, home: Home, folder: RunFolder, count: int, until: int | None) -> str:
    """Continues a run on `count` ranks, up to a stop or its end; returns what went wrong."""
    _set_ranks(folder, count)
    start = checkpoints.newest_step(folder)
    with _trainer(stage, home, folder) as trainer:
        if until is None:
            problem = trainer.end()
        else:
            trainer.wait_for_step(until, 120)
            trainer.terminate()
            exit_status = trainer.wait()
            stopped = exit_status == 0 and trainer.status_is(RunState.STOPPED)
            problem = "" if stopped else f"stopped: status {exit_status}, {trainer.status}"
    begun = events_of(folder, "assembled")[-1:]
    if begun and begun[0]["step"] != start:
        return f"on {count} ranks it continued from step {begun[0]['step']}; expected {start}"
    return problem and f"{count} ranks: {problem}"


def _set_ranks(folder: RunFolder, count: int, max_restarts: int | None = None) -> None:
    data = folder.read_spec().model_dump(mode="json")
    data["device"] |= {"count": count, "max_restarts": max_restarts}
    folder.write_spec(parse_spec(data))


def _moved(folder: RunFolder, target: Path) -> tuple[RunFolder, Home]:
    """Copies a run and its home to another place, and returns both."""
    home_path = folder.path.parent.parent
    shutil.copytree(home_path, target, ignore=shutil.ignore_patterns("run-*"))
    moved = RunFolder(target / "runs" / folder.run_id)
    shutil.copytree(folder.path, moved.path)
    return moved, Home.at(target)


def _absolute_path(folder: RunFolder, home: Path) -> str:
    for checkpoint in checkpoints.visible(folder):
        if str(home) in (checkpoint / "state.json").read_text():
            return f"{checkpoint.name}/state.json contains a path"
    return ""


def _furthest_apart(one: Ended, other: Ended) -> float:
    """Returns the largest relative difference of two runs' losses; inf if the steps differ."""
    if [line["step"] for line in one.lines] != [line["step"] for line in other.lines]:
        return float("inf")
    return max(
        float(abs(ours[name] - theirs[name]) / max(1.0, abs(ours[name])))
        for ours, theirs in zip(one.lines, other.lines, strict=True)
        for name in ours
        if name.startswith("loss/")
    )


def lost_ranks(stage: Stage) -> Tally:
    """S11: kills one of two ranks, once more than allowed; then kills the supervisor."""
    tally = Tally()
    slowest = furthest = 0.0
    with both_courses(stage, **_SECTIONS) as both:
        for course in both[: stage.tries(2, 1)]:
            folder = course.begin()
            _set_ranks(folder, 2, max_restarts=1)
            problem, seconds = _ranks_killed(stage, course, folder)
            tally.count(not problem, f"ranks killed twice: {problem}", 2)
            problem, until_gone = _watcher_killed(stage, course, folder)
            slowest = max(slowest, seconds, until_gone)
            apart = _furthest_apart(course.undisturbed, Ended.of(folder))
            furthest = max(furthest, apart)
            problem = problem or ("" if apart <= _CLOSE else f"losses are {apart:.1e} apart")
            tally.count(not problem, f"supervisor killed: {problem}")
    tally.require_within(slowest, S11_END_SECONDS, "the end of all ranks")
    tally.figure = (
        f"all ranks end {slowest:.1f} s after one is killed, restart once, then end as interrupted "
        f"(rank_lost); no process left; once resumed, losses within {furthest:.0e} of one rank's"
    )
    return tally


def _ranks_killed(stage: Stage, course: Course, folder: RunFolder) -> tuple[str, float]:
    """Kills a rank, then one after the restart; returns what went wrong, and the seconds."""
    slowest = 0.0
    with _trainer(stage, course.home, folder) as trainer:
        for number, rank in enumerate((1, 0)):
            stage.say(f"kill {number + 1}, of rank {rank}")
            _wait_for_start(trainer, number + 1)
            trainer.wait_for_step(15 + 20 * number, 60)
            ranks = _ranks_of(trainer)
            if rank not in ranks:
                return f"the ranks are {sorted(ranks)}: {trainer.status}", slowest
            ranks[rank].kill()
            begun = time.monotonic()
            psutil.wait_procs(ranks.values(), 2 * S11_END_SECONDS)
            slowest = max(slowest, time.monotonic() - begun)
        exit_status, status = trainer.wait(S11_END_SECONDS), trainer.status
    restarts = len(events_of(folder, "rank_lost"))
    said = None if status is None else (str(status.state), status.reason)
    if exit_status != 75 or said != ("interrupted", "rank_lost") or restarts != 1:
        return f"status {exit_status}, {status}, {restarts} restarts", slowest
    return "" if _all_gone(folder, 5) else "a process is left behind", slowest


def _watcher_killed(stage: Stage, course: Course, folder: RunFolder) -> tuple[str, float]:
    """Resumes, kills the supervisor, resumes; returns what went wrong, and the seconds."""
    stage.say("kill of the supervisor")
    starts = len(events_of(folder, "assembled"))
    with _trainer(stage, course.home, folder) as trainer:
        _wait_for_start(trainer, starts + 1)
        trainer.wait_for_step(45, 60)
        trainer.kill()
        begun = time.monotonic()
        is_gone = _all_gone(folder, 2 * S11_END_SECONDS)
        seconds = time.monotonic() - begun
    with _trainer(stage, course.home, folder) as trainer:
        problem = trainer.end()
    return problem or (
        "" if is_gone and _all_gone(folder, 5) else "a process is left behind"
    ), seconds


def _wait_for_start(trainer: Trainer, starts: int) -> None:
    trainer.wait_until(lambda: len(events_of(trainer.folder, "assembled")) >= starts, 120)


def _ranks_of(trainer: Trainer) -> dict[int, psutil.Process]:
    """Returns the ranks that a trainer has started."""
    children = psutil.Process(trainer.process.pid).children() if trainer.alive else []
    return {int(process.environ()["RANK"]): process for process in children}


def _all_gone(folder: RunFolder, seconds: float) -> bool:
    """Returns True once no process names the run, False if one is left after `seconds`."""
    end = time.monotonic() + seconds
    while _of_run(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _of_run(folder: RunFolder) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        named: dict[str, Any] = process.info
        if str(folder.path) in (named["cmdline"] or []) and named["status"] != psutil.STATUS_ZOMBIE:
            found.append(int(named["pid"]))
    return found


@contextmanager
def _trainer(stage: Stage, home: Home, folder: RunFolder) -> Iterator[Trainer]:
    trainer = Trainer(stage, home, folder, ("--resume",), forked=True, faults=_SLOW)
    try:
        yield trainer
    finally:
        trainer.kill()
        for pid in _of_run(folder):  # left over if the protection is off
            psutil.Process(pid).kill()
