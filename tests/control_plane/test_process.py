"""`python -m control_plane` as a process, with real trainers: kills, stops, refused starts."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import httpx
import psutil
import pytest

from control_plane.__main__ import main
from lectern_common.callers import CONTROL_PLANE_TOKEN, token_in
from lectern_common.json_lines import read_json_lines
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import (
    ROOT,
    STAND_IN,
    STAND_IN_FORK_SERVER,
    make_home,
    spec_body,
    wait_for,
)

PROGRAM = """
import json, sys
from control_plane.__main__ import main
sys.exit(main(sys.argv[2:], *json.loads(sys.argv[1])))
"""


class Service:
    """A control plane process whose trainers are stand-ins. The fixture `home` ends it.

    It asks for no token unless it is told to, so that pages and clients need none.
    """

    started: ClassVar[list["Service"]] = []
    forks: ClassVar[bool] = False

    def __init__(
        self,
        folder: Path,
        *options: str,
        step_seconds: float = 0.02,
        bind: str = "127.0.0.1:0",
        token: bool = False,
    ) -> None:
        if not token and "--token-file" not in options:
            options = (*options, "--no-token")
        self.folder = folder
        port_file = folder / "port"
        port_file.unlink(missing_ok=True)
        further = ["--step-seconds", str(step_seconds)]
        commands = [[*STAND_IN, *further]]
        if self.forks:
            commands.append([*STAND_IN_FORK_SERVER, *further])
        log = folder / "control-plane.log"
        self.log = log.open("ab")
        began = log.stat().st_size
        self.client = httpx.Client(trust_env=False)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(commands)),
                *("--bind", bind, "--home", str(folder)),
                *("--port-file", str(port_file), *options),
            ],
            stderr=self.log,
            cwd=ROOT,
        )
        try:
            wait_for(lambda: port_file.exists() or self.process.poll() is not None)
            if self.forks:
                wait_for(lambda: b"fork server ready" in log.read_bytes()[began:])
            address = port_file.read_text()
        finally:
            Service.started.append(self)
        self.client.base_url = f"http://{address}"
        path = Roots.of_home(folder).secrets / CONTROL_PLANE_TOKEN
        if token:
            self.client.headers["authorization"] = f"Bearer {token_in(path)}"

    @property
    def address(self) -> str:
        return self.client.base_url.netloc.decode()

    def create(self, name: str = "steady", steps: int = 100_000, **sections) -> str:
        response = self.client.post("/runs", json=spec_body(name, steps, **sections))
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def run(self, run_id: str) -> dict:
        run: dict = self.client.get(f"/runs/{run_id}").json()
        return run

    def wait(self, run_id: str, state: str) -> dict:
        run: dict = wait_for(lambda: (run := self.run(run_id))["state"] == state and run)
        return run

    def post(self, path: str) -> None:
        assert self.client.post(path).status_code == 202

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def end(self) -> int:
        self.process.terminate()
        code = self.process.wait(60)
        self.close()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.client.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    make_home(tmp_path)
    yield tmp_path
    for service in Service.started:
        service.close()
    Service.started.clear()
    for process in trainers(tmp_path):
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in (*process.children(recursive=True), process):
                member.kill()


@pytest.fixture(params=[pytest.param("started afresh", marks=pytest.mark.long), "forked"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a test run twice: with trainers that are started afresh, and that are forked."""
    monkeypatch.setattr(Service, "forks", request.param == "forked")


def trainers(home: Path) -> list[psutil.Process]:
    """Returns every living stand-in that trains below this home."""
    root = f"{Roots.of_home(home).runs}{os.sep}"
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and STAND_IN[-1] in (process.info["cmdline"] or [])
        and any(part.startswith(root) for part in process.info["cmdline"])
    ]


def folder_of(home: Path, run_id: str) -> RunFolder:
    return RunFolder(Roots.of_home(home).runs / run_id)


@pytest.mark.usefixtures("both_ways")
def test_trainers_survive_a_killed_control_plane_and_are_adopted_by_the_next(home):
    first = Service(home)
    runs = [first.create(f"steady-{number}") for number in range(3)]
    before = {run_id: first.wait(run_id, "running") for run_id in runs}
    pids = {process.pid for process in trainers(home)}
    assert len(pids) == 3
    first.kill()
    assert {process.pid for process in trainers(home)} == pids

    second = Service(home)

    def goes_on(run_id: str) -> bool:
        return bool(second.run(run_id)["step"] > before[run_id]["step"])

    for run_id in runs:
        run = second.run(run_id)
        assert (run["state"], run["attempt"]) == ("running", 1)
        wait_for(partial(goes_on, run_id))
    for run_id in runs:
        second.post(f"/runs/{run_id}/stop")
    for run_id in runs:
        stopped = second.wait(run_id, "stopped")
        assert stopped["checkpoint_step"] == stopped["step"]
        lines = read_json_lines(folder_of(home, run_id).metrics_path)
        assert [line["step"] for line in lines] == list(range(len(lines)))
        assert len(read_json_lines(folder_of(home, run_id).path / "launches.jsonl")) == 1
    assert trainers(home) == []
    assert second.end() == 0


@pytest.mark.long
@pytest.mark.usefixtures("both_ways")
def test_a_run_whose_trainer_and_control_plane_were_killed_resumes_at_the_next_start(home):
    first = Service(home)
    run_id = first.create(steps=300)
    wait_for(lambda: (first.run(run_id)["checkpoint_step"] or 0) >= 10)
    [trainer] = trainers(home)
    first.kill()
    trainer.kill()
    wait_for(lambda: not trainers(home))

    second = Service(home)
    run = second.wait(run_id, "succeeded")
    assert run["attempt"] == 2
    states = [entry["state"] for entry in run["history"] if entry["kind"] == "state"]
    assert "interrupted" in states
    lines = read_json_lines(folder_of(home, run_id).metrics_path)
    assert [line["step"] for line in lines] == list(range(301))
    assert second.end() == 0


@pytest.mark.usefixtures("both_ways")
def test_exit_with_stop_checkpoints_runs_and_the_next_start_resumes_them(home):
    first = Service(home, "--on-exit", "stop")
    run_id = first.create(steps=200)
    wait_for(lambda: first.run(run_id)["step"] > 2)
    assert first.end() == 0
    assert trainers(home) == []
    status = folder_of(home, run_id).read_status()
    assert status is not None and status.state == "stopped"
    assert status.checkpoint_step == status.step > 2

    second = Service(home, "--on-exit", "stop")
    run = second.wait(run_id, "succeeded")
    launches = read_json_lines(folder_of(home, run_id).path / "launches.jsonl")
    assert [launch["resume"] for launch in launches] == [False, True]
    assert run["step"] == 200
    assert second.end() == 0


@pytest.mark.long
@pytest.mark.usefixtures("both_ways")
def test_exit_with_leave_keeps_trainers_running(home):
    service = Service(home)
    run_id = service.create(steps=200)
    service.wait(run_id, "running")
    assert service.end() == 0
    assert len(trainers(home)) == 1
    wait_for(lambda: not trainers(home))
    again = Service(home)
    assert again.run(run_id)["state"] == "succeeded"
    assert again.end() == 0


@pytest.mark.long
@pytest.mark.usefixtures("both_ways")
def test_a_trainer_that_does_not_stop_is_killed_with_its_children(home):
    service = Service(home, "--stop-grace-seconds", "0.5")
    run_id = service.create("stubborn")
    service.wait(run_id, "running")
    [trainer] = trainers(home)
    members = [trainer, *wait_for(trainer.children)]
    service.post(f"/runs/{run_id}/stop")
    run = service.wait(run_id, "interrupted")
    assert run["reason"] == "killed"
    wait_for(lambda: not any(is_running(member) for member in members))
    assert service.end() == 0


def test_a_second_control_plane_is_refused_and_open_streams_do_not_delay_the_exit(home, refused):
    service = Service(home)
    said = refused("--bind", "127.0.0.1:0", "--home", str(home))
    assert "another control plane manages" in said
    run_id = service.create()
    service.wait(run_id, "running")
    with contextlib.ExitStack() as stack:
        for path in ("/events", f"/runs/{run_id}/events"):
            response = stack.enter_context(service.client.stream("GET", path))
            assert response.headers["content-type"].startswith("text/event-stream")
            assert next(response.iter_raw()).startswith(b"retry:")
        assert service.end() == 0


def test_a_stream_over_http_continues_after_the_last_event(home):
    service = Service(home)
    run_id = service.create(steps=30)
    service.wait(run_id, "succeeded")
    ids, steps = read_events(service, run_id, {}, until=30)
    assert steps == list(range(31))
    cut = ids[len(ids) // 2]
    again, rest = read_events(service, run_id, {"last-event-id": cut}, until=30)
    assert again == ids[len(ids) // 2 + 1 :]
    assert rest == steps[-len(rest) :]
    assert service.end() == 0


def read_events(service, run_id, headers, until):
    ids, steps = [], []
    with service.client.stream("GET", f"/runs/{run_id}/events", headers=headers) as response:
        for line in response.iter_lines():
            if line.startswith("id: "):
                ids.append(line[4:])
            elif line.startswith("data: ") and '"step"' in line:
                steps.append(json.loads(line[6:])["step"])
                if steps[-1] == until:
                    return ids, steps
    raise AssertionError("the stream ended")


@pytest.mark.long
@pytest.mark.usefixtures("both_ways")
def test_a_run_that_keeps_crashing_fails_with_its_reason(home):
    service = Service(home)
    run_id = service.create("silent")
    run = service.wait(run_id, "failed")
    assert run["reason"] == "start_failed"
    assert "no module named anything" in run["message"]
    assert "no module named anything" in service.client.get(f"/runs/{run_id}/logs").text
    assert service.end() == 0


# ---- starts that are refused ---------------------------------------------------------------------


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Returns a function that returns the one sentence of a refused start, in this process."""

    def start(*options: str) -> str:
        capsys.readouterr()
        assert main(options) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    return start


def test_a_taken_port_is_refused(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "control_plane", "--bind", address, "--home", str(home)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    [said] = done.stderr.splitlines()
    assert said == (
        f"control_plane: cannot listen on {address}: Address already in use; choose another with "
        "--bind HOST:PORT"
    )


def test_an_address_beyond_loopback_needs_a_token(home, refused):
    said = refused("--bind", "0.0.0.0:0", "--home", str(home), "--no-token")
    assert "anyone could steer the runs: remove --no-token" in said


def test_a_port_file_that_cannot_be_written_is_refused(home, refused):
    said = refused("--bind", "127.0.0.1:0", "--home", str(home), "--port-file", str(home / "a/b"))
    assert f"there is no folder {home / 'a'}" in said


def test_it_loads_no_torch(home):
    program = (
        "import sys; import control_plane.__main__, control_plane.api.app; "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_token_is_required_and_is_in_no_log_or_process_table(home, tmp_path):
    token = "a-secret-of-this-test-alone"
    (tmp_path / "token").write_text(f"{token}\n")
    service = Service(home, "--token-file", str(tmp_path / "token"), "--on-exit", "stop")
    assert service.client.get("/runs").status_code == 401
    service.client.headers["authorization"] = f"Bearer {token}"
    service.wait(service.create(), "running")
    [trainer] = trainers(home)
    assert not any(token in text for text in (*trainer.cmdline(), *trainer.environ().values()))
    assert service.end() == 0
    for path in [*home.rglob("*.log"), *home.rglob("*.sqlite3*")]:
        assert token.encode() not in path.read_bytes()


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- the token -----------------------------------------------------------------------------------


def test_a_token_is_made_at_the_first_start_and_kept(home):
    service = Service(home, token=True)
    secrets = Roots.of_home(home).secrets
    full, read = secrets / "control-plane", secrets / "control-plane-read"
    assert {path.stat().st_mode & 0o777 for path in (full, read)} == {0o600}
    assert sorted(path.name for path in secrets.iterdir()) == [
        "control-plane",
        "control-plane-read",
    ]
    tokens = full.read_text(), read.read_text()
    run_id = service.create(steps=3)
    anybody = httpx.Client(base_url=service.client.base_url, trust_env=False)
    assert [anybody.get(path).status_code for path in ("/runs", "/healthz", "/")] == [401, 200, 200]
    anybody.headers["authorization"] = f"Bearer {tokens[1].strip()}"
    assert anybody.get(f"/runs/{run_id}").status_code == 200
    told = anybody.post("/runs", json=spec_body())
    assert (told.status_code, told.json()["reason"]) == (403, "read_only_token")
    anybody.close()
    assert service.end() == 0
    assert not any(token.strip() in (home / "control-plane.log").read_text() for token in tokens)

    again = Service(home, token=True)
    assert again.run(run_id)["id"] == run_id
    assert (full.read_text(), read.read_text()) == tokens
    assert again.end() == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--no-token", "--token-file", "x"], "--token-file has no effect with --no-token"),
        (["--no-token", "--read-only-token-file", "x"], "has no effect with --no-token"),
        (["--read-only-token-file", "gone"], "cannot read --read-only-token-file gone"),
        (
            ["--read-only-token-file", "{home}/secrets/control-plane"],
            "hold the same token, so the second would not be read-only",
        ),
    ],
)
def test_tokens_that_make_no_sense_are_refused(home, refused, options, says):
    options = [option.format(home=home) for option in options]
    assert says in refused("--bind", "127.0.0.1:0", "--home", str(home), *options)


def test_a_token_that_cannot_be_made_is_refused(home, refused):
    Roots.of_home(home).secrets.write_text("a file, where the folder should be")
    said = refused("--bind", "127.0.0.1:0", "--home", str(home))
    assert "cannot make the token" in said and "--no-token" in said
