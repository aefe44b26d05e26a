"""C25 and C27: trainers that make no step, and clients that send no request."""

import contextlib
import subprocess
import sys
import time

from faults.control.plane import Plane, new_home, plane
from faults.processes import ROOT, environment, start_module
from faults.row import Tally
from faults.stage import Stage

C25_SECONDS = 120.0  # a step is late after a minute
C27_HEALTH_SECONDS = 1.0


def stalled(stage: Stage) -> Tally:
    """C25: the heart beats, but no step is made."""
    tally, home = Tally(), new_home(stage)
    with plane(stage, home) as service:
        for _ in range(stage.tries(3, 1)):
            run_id = service.create("stalls")
            beside = service.create("steady")
            run = service.wait_until(run_id, lambda run: run.get("stalled_since"), C25_SECONDS)
            tally.count(bool(run.get("stalled_since")), f"REST: {run.get('stalled_since')}")
            tally.count(run["state"] == "running", f"it is {run['state']}: {run['message']}")
            said = _said_by_command(service)
            tally.count("stalled" in said, f"`lectern runs list` says {said[-200:]!r}")
            other = service.run(beside).get("stalled_since")
            tally.count(other is None, "the run beside it is called stalled too")
            for stopped in (run_id, beside):
                service.post(f"/runs/{stopped}/stop")
                service.wait_for_state(stopped, "stopped", "interrupted", "failed")
    tally.figure = "said by REST and `lectern runs list`; the run beside it is not called stalled"
    return tally


def _said_by_command(service: Plane) -> str:
    words = [sys.executable, "-m", "lectern", "runs", "list", "--url"]
    words.append(f"http://{service.address}")
    own = {"LECTERN_HOME": str(service.home.path), "LECTERN_TOKEN": service.token or ""}
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**environment(), **own, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def idle_connections(stage: Stage) -> Tally:
    """C27: 1,100 connections that ask for nothing, more than there are descriptors."""
    tally, home = Tally(), new_home(stage)
    number, slowest = 1100, 0.0
    with plane(stage, home, faults=("descriptors=1024",)) as service:
        clients = start_module("faults.control.watchers", "idle", service.address, str(number))
        try:
            if clients.stdout is None:
                raise RuntimeError("no pipe")
            held = int(clients.stdout.readline())
            for _ in range(stage.tries(10, 3)):
                try:
                    healthy = service.client.get("/healthz", timeout=20).status_code == 200
                    run_id = service.create("steady", 5)
                    run = service.wait_for_state(run_id, "succeeded", "failed", seconds=30)
                    tally.count(run["state"] == "succeeded", f"{run['state']}: {run['message']}")
                except Exception as error:
                    healthy = False
                    tally.count(False, repr(error)[:200])
                tally.count(healthy, "it is not healthy")
                begun = time.monotonic()
                with contextlib.suppress(Exception):
                    service.client.get("/healthz", timeout=20)
                slowest = max(slowest, time.monotonic() - begun)
        finally:
            clients.kill()
            clients.communicate()
        lines = service.log.count("\n")
    tally.require(lines < 1000, f"it wrote {lines} lines of log")
    tally.require_within(slowest, C27_HEALTH_SECONDS, "health")
    tally.figure = f"{held} opened; health within {1000 * slowest:.0f} ms, every run started"
    return tally
