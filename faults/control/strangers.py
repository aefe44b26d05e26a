"""C4 and C7: processes that only look like a trainer, and trainers that do not want to end."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil

from faults.control.plane import (
    Plane,
    begun,
    database,
    gaps,
    new_home,
    plane,
    states_of,
    trainers_below,
)
from faults.processes import wait_for
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import Home

_SET_CHILD_SUBREAPER = 36  # prctl: orphans below this process become its children
_NOBODY = 65534
_STEPS = 300
_STAYS = (
    "import os, signal, sys, time; os.setuid({}); "
    "signal.signal(15, lambda *_: sys.exit(9)); time.sleep(600)"
)
_GRACE_SECONDS = 0.5


def not_ours(stage: Stage) -> Tally:
    """C4: pids that are reused, zombies, and processes of others with a run's folder in argv."""
    tally = Tally()
    kinds: dict[str, Callable[[Stage, Home], str]] = {
        "a reused pid": _reused_pid,
        "a zombie": _zombie,
        "a bystander": _bystander,
    }
    if os.getuid() == 0:
        kinds["another user's process"] = _another_users
    for _ in range(stage.tries(5, 1)):
        for kind, tried in kinds.items():
            stage.say(kind)
            problem = tried(stage, new_home(stage))
            tally.count(not problem, f"{kind}: {problem}")
    tally.figure = (
        f"{', '.join(kinds)}: never adopted, never signalled; the run went on by itself each time"
    )
    return tally


def _reused_pid(stage: Stage, home: Home) -> str:
    """After the trainer's end, its pid belongs to a process that another program started."""
    run_id = _orphaned_run(stage, home)
    _kill(trainers_below(home))
    with _stranger() as other:
        with database(home.roots.runs / "control-plane.sqlite3") as connection:
            connection.execute(
                "UPDATE runs SET handle = 'local:' || ? || substr(handle, instr(handle, '/'))",
                (other.pid,),
            )
        path = home.roots.runs / run_id / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "pid": other.pid}))
        return _goes_on_beside(stage, home, run_id, other)


def _zombie(stage: Stage, home: Home) -> str:
    """The trainer has ended, but its parent does not take note of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        run_id = _orphaned_run(stage, home)
        (pid,) = trainers_below(home)
        _kill([pid])
        if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            raise RuntimeError("there is no zombie")
        try:
            return _goes_on(stage, home, run_id)
        finally:
            os.waitpid(pid, 0)
    finally:
        libc.prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _bystander(stage: Stage, home: Home) -> str:
    """Someone looks at the log, say: the folder is in the command line, but its lock is free."""
    run_id = _orphaned_run(stage, home, forgotten=True)
    with _stranger(str(home.roots.runs / run_id)) as other:
        return _goes_on_beside(stage, home, run_id, other)


def _another_users(stage: Stage, home: Home) -> str:
    run_id = _orphaned_run(stage, home, forgotten=True)
    # All that a trainer's command line has.
    words = ("-m", "faults.launcher", "--", str(home.roots.runs / run_id))
    with _stranger(*words, user=_NOBODY) as other:
        if not wait_for(lambda: psutil.Process(other.pid).uids().real == _NOBODY):
            raise RuntimeError("it is not another user's")
        return _goes_on_beside(stage, home, run_id, other)


def _orphaned_run(stage: Stage, home: Home, *, forgotten: bool = False) -> str:
    """Returns a run whose control plane was killed.

    Args:
        forgotten: it was killed before it had recorded a pid, and the trainer before it began.
    """
    faults = ("die-at=claimed:1",) if forgotten else ()
    first = Plane(stage, home, faults=faults)
    try:
        first.ready()
        if not forgotten:
            run_id = first.create("steady", _STEPS)
            first.wait_until(run_id, lambda run: run["checkpoint_step"])
            return run_id
        with contextlib.suppress(Exception):
            first.create("steady", _STEPS)
        first.wait()
    finally:
        first.kill()
    with database(home.roots.runs / "control-plane.sqlite3") as connection:
        ((run_id,),) = connection.execute("SELECT id FROM runs").fetchall()
    return str(run_id)


@contextlib.contextmanager
def _stranger(*words: str, user: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a process that exits with status 9 at SIGTERM; it leads a session of its own."""
    code = _STAYS.format(os.getuid() if user is None else user)
    other = subprocess.Popen([sys.executable, "-c", code, *words], start_new_session=True)
    try:
        yield other
    finally:
        other.kill()
        other.wait()


def _goes_on_beside(stage: Stage, home: Home, run_id: str, other: "subprocess.Popen[bytes]") -> str:
    problem = _goes_on(stage, home, run_id)
    status = other.poll()
    return problem or ("" if status is None else f"it was ended: status {status}")


def _goes_on(stage: Stage, home: Home, run_id: str) -> str:
    """Returns "" if the next control plane brings the run to its end with a trainer of its own."""
    with plane(stage, home) as second:
        run = second.wait_for_state(run_id, "succeeded", "failed", seconds=30)
        if run["state"] != "succeeded":
            return f"the run is {run['state']} after {states_of(run)}: {run['message']}"
        return gaps(second.folder(run_id).metrics_path, _STEPS) or (
            "" if begun(second.folder(run_id)) == run["attempt"] else "it had too many trainers"
        )


def _kill(pids: "list[int] | dict[int, str]") -> None:
    for pid in pids:
        psutil.Process(pid).kill()
        _wait_for_end([pid])


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def deaf_trainers(stage: Stage) -> Tally:
    """C7: trainers that ignore SIGTERM, with a child and a grandchild that do so too."""
    tally, home = Tally(), new_home(stage)
    slowest, tries = 0.0, stage.tries(10, 2)
    with plane(stage, home, "--stop-grace-seconds", str(_GRACE_SECONDS)) as service:
        for number in range(tries):
            stage.say(f"{number} of {tries} trainers")
            run_id = service.create("deaf")
            service.wait_for_state(run_id, "running")
            (pid,) = service.trainers()
            leader = psutil.Process(pid)
            members = _with_descendants(leader)
            begun_at = time.monotonic()
            service.post(f"/runs/{run_id}/stop")
            run = service.wait_for_state(run_id, "interrupted", "stopped", "failed", seconds=30)
            gone = _wait_for_end(members)
            slowest = max(slowest, time.monotonic() - begun_at)
            left = [member for member in members if _lives(member)]
            _end(members)
            tally.count(
                gone and (run["state"], run["reason"]) == ("interrupted", "killed"),
                f"{len(left)} processes are left; {run['state']}: {run['message']}",
            )
    tally.figure = (
        f"killed with child and grandchild after the grace of {_GRACE_SECONDS:g} s, within "
        f"{slowest:.1f} s in all; 0 descendants left"
    )
    return tally


def _with_descendants(leader: psutil.Process) -> list[int]:
    """Returns a deaf trainer, its child and its grandchild."""
    if not wait_for(lambda: len(leader.children(recursive=True)) == 2):
        raise RuntimeError("it has no grandchild")
    return [leader.pid, *(child.pid for child in leader.children(recursive=True))]


def _wait_for_end(pids: list[int]) -> bool:
    """Returns whether all of them ended within some seconds."""
    return wait_for(lambda: not any(map(_lives, pids)), 5)


def _end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
