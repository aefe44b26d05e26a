"""A real control plane on loopback, its client, and the homes it works in."""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from faults.processes import PATIENCE_SECONDS, Launched, Usage, usage_of, wait_for
from faults.stage import Stage
from faults.trainer.runs.forked import ForkServer
from faults.trainer.runs.run import Home, spec_of
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder

# What a control plane imports.
MODULES = (
    "control_plane.api.app",
    "control_plane.trainers.reconciler",
    "lectern_common.listening",
    "uvicorn.lifespan.on",
    "uvicorn.loops.asyncio",
    "uvicorn.protocols.http.h11_impl",
)
RESTING = ("stopped", "succeeded", "failed", "interrupted")
_STEPS = 100_000  # of a run that a row ends itself


def new_home(stage: Stage, folder: Path | None = None) -> Home:
    """Returns a home of its own with the student and the teacher that all rows share."""
    shared = Home(stage)
    folder = folder or stage.new_folder()
    for name in ("models", "teacher"):
        shutil.copytree(shared.path / name, folder / name)
    return Home.at(folder)


class Plane(Launched):
    """`python -m control_plane` on a home. End it, and its trainers, with `close`.

    Args:
        home: with its database and run folders.
        options: of its command line; `--bind` may be among them. Unless `--fork-server` is, each of
            its trainers is a new process.
        trainers: the faults of its trainers; by default they are stand-ins with steps of 10 ms.
        faults: injected into it; see injections.py.
        token: its clients send this one; by default the one in its home's secrets, if there is one.
        server: starts it; by default the stage's.
        seen: where this process sees the home, if the plane has mounts of its own.
    """

    def __init__(
        self,
        stage: Stage,
        home: Home,
        options: Sequence[str] = (),
        *,
        trainers: Sequence[str] = ("stand-in=0.01",),
        faults: Sequence[str] = (),
        token: str | None = None,
        server: ForkServer | None = None,
        seen: Path | None = None,
    ) -> None:
        folder = stage.new_folder()
        self.home = home if seen is None else Home.at(seen)
        self.port_file = folder / "port"
        bind = () if "--bind" in options else ("--bind", "127.0.0.1:0")
        said = {"--fork-server", "--no-fork-server"} & {*options}
        fork = () if said else ("--no-fork-server",)
        own = (*bind, *fork, "--port-file", str(self.port_file), "--home", str(home.path))
        alike = [f"--trainer-fault={fault}" for fault in trainers]
        super().__init__(
            "control",
            folder,
            [*own, *options],
            faults,
            stage.sabotage,
            server or stage.planes,
            alike,
        )
        self.token = token
        # A connection each: the server closes its end after a 500, and the next would break.
        alone = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS, limits=alone)

    def wait_until_up(self) -> bool:
        """Waits until it serves or has ended; returns whether it serves."""
        wait_for(lambda: self.port_file.exists() or not self.alive)
        return self.port_file.exists() and self.alive

    def ready(self) -> "Plane":
        """Returns itself once it serves. Raises RuntimeError if it does not start."""
        if not self.wait_until_up():
            raise RuntimeError(f"the control plane did not start: {self.log[-2000:]}")
        self.client.base_url = httpx.URL(f"http://{self.address}")
        own = self.home.roots.secrets / "control-plane"
        if self.token is None and own.exists():
            self.token = own.read_text().strip()
        self.client.headers.update(self.headers)
        return self

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every request to it needs."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    @property
    def address(self) -> str:
        return self.port_file.read_text().strip()

    @property
    def pid(self) -> int:
        return self.process.pid

    def create(self, name: str = "steady", steps: int = _STEPS, **sections: Any) -> str:
        """Returns the id of a new run. Raises RuntimeError if it is refused."""
        answer = self.client.post("/runs", json=body_of(name, steps, **sections))
        if answer.status_code != 202:
            raise RuntimeError(f"POST /runs: {answer.status_code} {answer.text[:500]}")
        return str(answer.json()["id"])

    def post(self, path: str) -> httpx.Response:
        return self.client.post(path)

    def run(self, run_id: str) -> dict[str, Any]:
        """Returns a run as it is now."""
        answer = self.client.get(f"/runs/{run_id}")
        if answer.status_code != 200:
            raise RuntimeError(f"GET /runs/{run_id}: {answer.status_code} {answer.text[:500]}")
        found: dict[str, Any] = answer.json()
        return found

    def runs(self) -> list[dict[str, Any]]:
        """Returns the newest 200 runs, newest first."""
        found: list[dict[str, Any]] = self.client.get("/runs?limit=200").json()["runs"]
        return found

    def wait_for_state(
        self, run_id: str, *states: str, seconds: float = PATIENCE_SECONDS
    ) -> dict[str, Any]:
        """Returns a run once it has one of the states, or as it is when time is up."""
        return self.wait_until(run_id, lambda run: run["state"] in states, seconds)

    def wait_until(
        self,
        run_id: str,
        holds: Callable[[dict[str, Any]], object],
        seconds: float = PATIENCE_SECONDS,
    ) -> dict[str, Any]:
        """Returns a run once the condition holds, or as it is when time is up."""
        end = time.monotonic() + seconds
        while not holds(run := self.run(run_id)) and time.monotonic() < end:
            time.sleep(0.02)
        return run

    def wait_for_progress(self, run_id: str, step: int) -> dict[str, Any]:
        """Returns a run once it is beyond a step or has succeeded, or as it is after a minute."""
        return self.wait_until(
            run_id, lambda run: run["step"] > step or run["state"] == "succeeded", 60
        )

    def wait_for_steps(self, run_id: str, step: int, seconds: float = PATIENCE_SECONDS) -> bool:
        """Returns whether a run's metrics reached a step in time."""
        path = self.folder(run_id).metrics_path
        return wait_for(lambda: last_step(path) >= step, seconds)

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.home.roots.runs / run_id)

    @property
    def database(self) -> Path:
        return self.home.roots.runs / "control-plane.sqlite3"

    def usage(self) -> Usage:
        """Returns the resources that it holds now."""
        return usage_of(self.pid)

    def kill(self) -> None:
        """Kills it with SIGKILL; its trainers go on."""
        super().kill()
        self.client.close()

    def stop(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        """Ends it with SIGTERM; returns its exit status, or None if it did not end in time."""
        self.terminate()
        status = self.wait_for_end(seconds)
        self.client.close()
        return status

    def wait_for_end(self, seconds: float = PATIENCE_SECONDS) -> int | None:
        return Launched.wait(self, seconds)

    def trainers(self) -> dict[int, str]:
        """Returns the living trainers below its home: the folder each trains, by pid."""
        return trainers_below(self.home)


def body_of(name: str = "steady", steps: int = _STEPS, **sections: Any) -> dict[str, Any]:
    """Returns the spec of a run on labels only, which takes no teacher."""
    schedule = {"steps": steps, "warmup_steps": 0, **sections.pop("schedule", {})}
    return {**spec_of(schedule=schedule, **sections), "name": name}


def trainers_below(home: Home) -> dict[int, str]:
    """Returns the living trainers of this user whose command line names a run of this home."""
    root = f"{home.roots.runs}/"
    found = {}
    for process in psutil.process_iter(["cmdline", "status", "uids"]):
        words, uids = process.info["cmdline"] or [], process.info["uids"]
        named = [word for word in words if word.startswith(root)]
        is_ours = uids is not None and uids.real == os.getuid() and "faults.launcher" in words
        if named and is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.pid] = Path(named[0]).name
    return found


def last_step(path: Path) -> int:
    """Returns the step of the last whole line of a metrics file; -1 without one."""
    lines = read_json_lines(path)
    return int(lines[-1]["step"]) if lines else -1


def gaps(path: Path, upto: int | None = None) -> str:
    """Returns "" if a metrics file has every step from 0 on once, else what is wrong."""
    steps = [line["step"] for line in read_json_lines(path)]
    if steps != list(range(len(steps))):
        wrong = next(place for place, step in enumerate(steps) if step != place)
        return f"line {wrong + 1} of its metrics is of step {steps[wrong]}"
    if upto is not None and len(steps) != upto + 1:
        return f"its metrics end at step {len(steps) - 1}; expected {upto}"
    return ""


def states_of(run: dict[str, Any]) -> list[str]:
    """Returns the states that a run went through, in order."""
    return [entry["state"] for entry in run["history"] if entry["kind"] == "state"]


def begun(folder: RunFolder) -> int:
    """Returns how many trainers a run had, by what they printed."""
    from faults.control.stand_in import ANNOUNCED

    path = folder.log_path
    return path.read_bytes().count(ANNOUNCED.encode()) if path.exists() else 0


@contextlib.contextmanager
def plane(stage: Stage, home: Home, *options: str, **named: Any) -> Iterator[Plane]:
    """Yields a ready control plane; then ends it and every trainer of its home."""
    started = Plane(stage, home, options, **named)
    try:
        yield started.ready()
    finally:
        started.kill()
        end_trainers(started.home)


def end_trainers(home: Home) -> None:
    """Kills every trainer of a home, with what it started."""
    for pid in trainers_below(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            leader = psutil.Process(pid)
            for member in (*leader.children(recursive=True), leader):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
    wait_for(lambda: not trainers_below(home))


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Yields a connection to a control plane's database, which it commits."""
    connection = sqlite3.connect(path, timeout=30)
    try:
        with connection:
            yield connection
    finally:
        connection.close()
