"""kill -9 of a control plane in the middle of POST /sweeps leaves all of its runs, or none."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import open_plane
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.roots import Roots
from tests.control_plane.conftest import BASE_URL, ROOT, make_home, spec_body
from tests.support.fakes import FakeClock, FakeProcesses

RUNS = 40
BODY = {"name": "killed", "base": spec_body(), "grid": {"seed": list(range(RUNS))}}
KEY = {"Idempotency-Key": "once"}

# Serves one request in a process of its own, which kills itself at the given moment of it: before
# the n-th run of the transaction is in its history, or just after the transaction.
_SERVER = """
import os, signal, sys
from pathlib import Path
from starlette.testclient import TestClient
from control_plane.api.app import create_app
from control_plane.plane import open_plane
from control_plane.runs import commands, creation
from control_plane.trainers.devices import Devices
from lectern_common.roots import Roots
from tests.control_plane.sweeps.test_killed import BODY, KEY
from control_plane.trainers.launching.local import LocalLauncher
from tests.support.fakes import FakeClock, FakeProcesses

home, moment = Path(sys.argv[1]), sys.argv[2]
remember, calls = creation.remember, []

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def counting(*arguments):
    calls.append(arguments)
    if len(calls) == int(moment):
        die()
    remember(*arguments)

if moment == "committed":
    commands.RunCommands.inserted = die
else:
    creation.remember = counting
processes = FakeProcesses(FakeClock())
launcher = LocalLauncher(processes)
plane = open_plane(Roots.of_home(home), devices=Devices((), max_running=1), launcher=launcher)
with TestClient(create_app(plane), base_url="http://127.0.0.1") as client:
    client.post("/sweeps", json=BODY, headers=KEY)
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        pytest.param("1", 0, marks=pytest.mark.long),
        pytest.param(str(RUNS // 2), 0, marks=pytest.mark.long),
        (str(RUNS), 0),
        ("committed", RUNS),
    ],
)
def test_a_kill_leaves_all_runs_or_none(tmp_path: Path, moment: str, left: int) -> None:
    make_home(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", _SERVER, str(tmp_path), moment],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    plane = open_plane(
        Roots.of_home(tmp_path),
        devices=Devices((), max_running=1),
        launcher=LocalLauncher(FakeProcesses(FakeClock())),
    )
    with TestClient(create_app(plane), base_url=BASE_URL) as client:
        assert client.get("/runs").json()["total"] == left
        found = client.get("/sweeps").json()["sweeps"]
        assert [sum(one["states"].values()) for one in found] == ([left] if left else [])
        # The client asks again, and has the one sweep.
        again = client.post("/sweeps", json=BODY, headers=KEY)
        assert again.status_code == 202, again.text
        assert len(again.json()["runs"]) == RUNS
        assert client.get("/runs").json()["total"] == RUNS
        assert client.get("/sweeps").json()["total"] == 1
