"""C26: the disk of the run folders fills slowly, until nothing can be written."""

import errno
import time
from functools import partial
from pathlib import Path
from typing import Any

from faults.control.plane import Plane, end_trainers, gaps, new_home
from faults.processes import ROOT, environment
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.forked import ForkServer
from faults.trainer.runs.small_disk import in_own_mounts, may_mount
from lectern_common.run.folder import RunFolder, checkpoint_steps

_DISK_MIB = 128
_PIECE = 1 << 20
_PIECE_SECONDS = 0.1
_HEALS_SECONDS = 180.0
_OPTIONS = ("--fork-server", "--max-running-runs", "2")


def fills(stage: Stage) -> Tally:
    """C26: real trainers on a tmpfs that is filled a megabyte at a time, and emptied again."""
    tally, home = Tally(), new_home(stage)
    home.roots.runs.mkdir()
    if not may_mount(home.roots.runs):
        raise RuntimeError("it needs a tmpfs in a mount namespace of its own (unshare -rm)")
    prefix = in_own_mounts(home.roots.runs, _DISK_MIB)
    server = ForkServer(stage.new_folder() / "forked", environment(), ROOT, prefix)
    runs = server.seen_by_it(home.roots.runs)
    service = Plane(stage, home, _OPTIONS, trainers=(), server=server)
    try:
        service.ready()
        ids = [service.create("steady", checkpoint={"every_steps": 20}) for _ in range(2)]
        for run_id in ids:
            stage.say("waiting for checkpoints")
            run = service.wait_until(run_id, lambda run: run["checkpoint_step"], _HEALS_SECONDS)
            tally.require(run["checkpoint_step"] is not None, f"no checkpoint: {run['message']}")
        for number in range(stage.tries(3, 1)):
            stage.say(f"filling the disk, {number + 1}")
            _fill_once(tally, service, runs, ids)
        for run_id in ids:
            service.post(f"/runs/{run_id}/stop")
            run = service.wait_for_state(run_id, "stopped", "failed", seconds=_HEALS_SECONDS)
            problem = gaps(RunFolder(runs / run_id).metrics_path, run["step"])
            tally.count(run["state"] == "stopped" and not problem, f"{run['message']}: {problem}")
    finally:
        service.kill()
        end_trainers(home)
        server.close()
    return tally


def _fill_once(tally: Tally, service: Plane, runs: Path, ids: list[str]) -> None:
    """Fills the disk, and counts whether that was said before, and what became of the runs."""
    before = service.client.get("/disk").json()["warning"]
    tally.require(before is None, f"warned with room left: {before}")
    ballast = runs / ".ballast"
    warned_at = _filled(service, ballast)
    tally.count(warned_at is not None, "nothing was said before the disk was full")
    # The database lies there too: it may be told only once there is room again.
    ended = [_wait_for_end(RunFolder(runs / run_id)) for run_id in ids]
    tally.count(ended == ["interrupted disk_full"] * 2, f"the trainers ended as {ended}")
    newest = {run_id: max(checkpoint_steps(runs / run_id / "checkpoints")) for run_id in ids}
    ballast.unlink()
    begun = time.monotonic()
    for run_id in ids:
        beyond = partial(_trains_beyond, newest[run_id])
        found = service.wait_until(run_id, beyond, _HEALS_SECONDS)
        went_on = found["state"] == "running" and found["attempt"] > 1
        tally.count(went_on, f"with room again it is {found['state']}: {found['message']}")
    if warned_at is not None:
        tally.figure = (
            f"said with {warned_at >> 20} MB of {_DISK_MIB} free; the runs ended as disk_full with "
            f"every step, and went on {time.monotonic() - begun:.0f} s after there was room"
        )


def _trains_beyond(step: int, run: dict[str, Any]) -> bool:
    return run["state"] == "running" and (run["checkpoint_step"] or 0) > step


def _filled(service: Plane, ballast: Path) -> int | None:
    """Fills the disk slowly; returns what was free when the control plane first warned."""
    warned_at = None
    with ballast.open("wb", buffering=0) as file:
        while True:
            answer = service.client.get("/disk")
            if warned_at is None and answer.status_code == 200 and answer.json()["warning"]:
                warned_at = int(answer.json()["free_bytes"])
            try:
                written = file.write(b"\0" * _PIECE)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return warned_at
            if written == _PIECE:
                time.sleep(_PIECE_SECONDS)


def _wait_for_end(folder: RunFolder) -> str:
    """Returns "interrupted disk_full" once a trainer says so in its status, or its last word."""
    end = time.monotonic() + _HEALS_SECONDS
    while time.monotonic() < end:
        status = folder.read_status()
        if status is not None and status.reason == "disk_full":
            break
        time.sleep(0.1)
    return "no status" if status is None else f"{status.state} {status.reason}"
