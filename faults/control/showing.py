"""C17 to C19: hostile logs, secrets, and starts that cannot work."""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from faults.control.plane import Plane, body_of, end_trainers, new_home, plane
from faults.control.stand_in import LOG_PIECES, LONG_LINE_BYTES
from faults.processes import ROOT, Peak, Server, environment
from faults.row import Tally
from faults.stage import Stage

C17_BYTES = 512 * 1024
C17_GROWTH_BYTES = 64 * 1024 * 1024
C19_SECONDS = 5.0
_FORBIDDEN = ("\x1b", "\x9b", "\u202e", "\x00", "\r", "\x07")


def hostile_log(stage: Stage) -> Tally:
    """C17: a log with escapes, HTML, a line of 100 MB and bytes that are not UTF-8."""
    tally, home = Tally(), new_home(stage)
    with plane(stage, home) as service:
        run_id = service.create("log", 5)
        service.wait_for_state(run_id, "succeeded")
        size = service.folder(run_id).log_path.stat().st_size
        tally.require(size > LONG_LINE_BYTES, f"the log has only {size} bytes")
        largest = 0
        with Peak(service.pid) as peak:
            for lines in (1, 2, 3, 20, 200, 5000):
                answer = service.client.get(f"/runs/{run_id}/logs?tail={lines}")
                largest = max(largest, len(answer.content))
                text = answer.content.decode()  # valid, or this row breaks
                odd = [mark for mark in _FORBIDDEN if mark in text]
                kind = answer.headers["content-type"].partition(";")[0]
                right = not odd and kind == "text/plain" and "nosniff" in str(answer.headers)
                tally.count(right, f"tail={lines}: {kind}, with {odd}")
            tally.count("the last line" in text, "the last line is not shown")
            tally.count("[cut]" in text, "nothing says that a line was cut")
        short = _with_a_short_log(service)
        tally.count(all(mark not in short for mark in _FORBIDDEN), "escapes are shown")
        tally.count("red" in short and "done" in short, f"words are missing in {short!r}")
    tally.require(largest <= C17_BYTES, f"an answer has {largest} bytes")
    tally.require(peak.grown_bytes <= C17_GROWTH_BYTES, f"memory grew {peak.grown_bytes >> 20} MiB")
    tally.figure = (
        f"plain text without escapes, cut with a mark; answers up to {largest // 1024} KB, "
        f"memory +{peak.grown_bytes >> 20} MiB"
    )
    return tally


def _with_a_short_log(service: Plane) -> str:
    run_id = service.create("steady", 5)
    service.wait_for_state(run_id, "succeeded")
    with service.folder(run_id).log_path.open("ab") as log:
        log.write(b"\n".join(LOG_PIECES) + b"\n")
    return service.client.get(f"/runs/{run_id}/logs").text


_TOKENS = {"plane": "token-of-the-plane-7b1c", "teacher": "token-of-the-teacher-9e2f"}
# A shell from which the command line is used has this one.
_ENVIRONMENT = f"environment=LECTERN_TOKEN={_TOKENS['plane']}"


def secrets(stage: Stage) -> Tally:
    """C18: looks for the tokens of plane and teacher everywhere they have no business."""
    tally, home = Tally(), new_home(stage)
    home.roots.secrets.mkdir(mode=0o700)
    for name, token in _TOKENS.items():
        (home.roots.secrets / name).write_text(f"{token}\n")
        (home.roots.secrets / name).chmod(0o600)
    teaching = (*home.teacher_options, "--token-file", str(home.roots.secrets / "teacher"))
    teacher = Server(stage.new_folder(), teaching, ("unmeasured",), fork_server=stage.fork_server)
    try:
        address = teacher.ready().address
        options = (
            *("--token-file", str(home.roots.secrets / "plane"), "--teacher", address),
            *("--teacher-token-file", "teacher"),
        )
        named = {"token": _TOKENS["plane"], "faults": (_ENVIRONMENT,)}
        with plane(stage, home, *options, **named) as service:
            told = _told_about_runs(service, address)
            looked = [*_texts_of_processes(service, teacher), *told]
            for what, text in looked:
                tally.count(_none_in(text), f"a token is in {what}")
            service.stop()
            files = [path for path in home.path.rglob("*") if path.is_file()]
            for path in (*files, service.log_path, teacher.log_path):
                if path.parent != home.roots.secrets:
                    found = path.read_bytes().decode(errors="replace")
                    tally.count(_none_in(found), f"a token is in {path.name}")
    finally:
        teacher.kill()
        end_trainers(home)
    tally.figure = (
        "no token in argv, trainers' environment, database, run folders, logs, answers or errors"
    )
    return tally


def _none_in(text: str) -> bool:
    return not any(token in text for token in _TOKENS.values())


def _texts_of_processes(service: Plane, teacher: Server) -> Iterator[tuple[str, str]]:
    for pid in (service.pid, teacher.process.pid, *service.trainers()):
        process = psutil.Process(pid)
        yield f"the command line of {pid}", " ".join(process.cmdline())
        yield f"the environment of {pid}", json.dumps(process.environ())


def _told_about_runs(service: Plane, address: str) -> list[tuple[str, str]]:
    """Returns (request, answer) of right and wrong requests about runs that are taught."""
    teaching = {"address": address, "token_file": "teacher"}
    distil = {"objective": {"alpha": 0.5}, "teacher": teaching}
    run_id = service.create("kept", 10, **distil)
    service.wait_for_state(run_id, "starting", "running")
    told = []
    wrong: list[dict[str, Any]] = [
        {"teacher": {**teaching, "token_file": "plane"}, "objective": {"alpha": 0.5}},
        {"teacher": {**teaching, "address": "127.0.0.1:1"}, "objective": {"alpha": 0.5}},
        {"teacher": {**teaching, "token_file": "../secrets/teacher"}, "objective": {"alpha": 0.5}},
    ]
    for fields in wrong:
        told.append(("a refusal", service.client.post("/runs", json=body_of(**fields)).text))
    bad = {"authorization": "Bearer wrong"}
    told.append(("401", service.client.get("/runs", headers=bad).text))
    for path in ("/runs", f"/runs/{run_id}", f"/runs/{run_id}/spec", f"/runs/{run_id}/logs"):
        told.append((path, service.client.get(path).text))
    for path in ("/teachers", "/datasets", "/models", "/openapi.json", "/healthz", "/readyz", "/"):
        told.append((path, service.client.get(path).text))
    return told


def starts(stage: Stage) -> Tally:
    """C19: ports taken, folders closed, no GPU, no disk: one sentence each; `lectern doctor`."""
    tally, slowest = Tally(), 0.0
    with _cases(stage) as cases:
        for what, (options, fix) in cases.items():
            stage.say(what)
            begun = time.monotonic()
            status, lines = _run_control_plane(stage, options)
            slowest = max(slowest, time.monotonic() - begun)
            said = status == 2 and len(lines) == 1 and fix in lines[0]
            tally.count(said, f"{what}: exit status {status}, {lines[:2]}")
    home = new_home(stage)
    with plane(stage, home) as service:
        if not list(Path("/dev").glob("nvidia[0-9]*")):
            answer = service.client.post("/runs", json=body_of(device={"kind": "cuda"}))
            fields = [error["field"] for error in answer.json()["errors"]]
            tally.count(fields == ["device.kind"], f"no GPU: {answer.status_code} {fields}")
    _doctor_tells_all(stage, tally)
    tally.require_within(slowest, C19_SECONDS, "a refused start")
    tally.figure = (
        f"{len(cases)} kinds of start refused within {slowest:.1f} s in one sentence with its fix; "
        "`lectern doctor` names all at once"
    )
    return tally


@contextmanager
def _cases(stage: Stage) -> Iterator[dict[str, tuple[list[str], str]]]:
    """Yields options that cannot work, and what the sentence must advise."""
    home, file = new_home(stage), stage.new_folder() / "file"
    file.write_text("")
    empty = stage.new_folder() / "token"
    empty.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken, plane(stage, home):
        at_home = ["--home", str(stage.new_folder())]
        any_port = ["--bind", "127.0.0.1:0"]
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        yield {
            "a taken port": ([*at_home, "--bind", port], "--bind"),
            "an address of another machine": ([*at_home, "--bind", "192.0.2.1:0"], "--bind"),
            "no port": ([*at_home, "--bind", "127.0.0.1"], "host:port"),
            "a second control plane": ([*any_port, "--home", str(home.path)], "--home"),
            "a file as home": ([*any_port, "--home", str(file)], "--home"),
            "a disk that takes no file": ([*any_port, "--home", "/proc"], "--home"),
            "beyond loopback": (
                [*at_home, "--bind", "0.0.0.0:0", "--no-token"],
                "remove --no-token",
            ),
            "two meanings": (
                [*at_home, *any_port, "--no-token", "--token-file", str(empty)],
                "--no-token",
            ),
            "no token file": ([*at_home, *any_port, "--token-file", "/nowhere"], "/nowhere"),
            "an empty token": ([*at_home, *any_port, "--token-file", str(empty)], str(empty)),
            "no folder of the port file": (
                [*at_home, *any_port, "--port-file", "/nowhere/port"],
                "--port-file",
            ),
        }


def _run_control_plane(stage: Stage, options: list[str]) -> tuple[int | None, list[str]]:
    """Returns the exit status, None if it went on for a long time, and the lines it printed."""
    sabotage = ["--sabotage", stage.sabotage] if stage.sabotage else []
    words = [sys.executable, "-m", "faults.launcher", "control", *sabotage, "--", *options]
    with tempfile.TemporaryFile() as said:
        done = subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=said
        )
        try:
            status: int | None = done.wait(30)
        except subprocess.TimeoutExpired:
            done.kill()
            done.wait()
            status = None
        said.seek(0)
        return status, said.read().decode(errors="replace").splitlines()


def _doctor_tells_all(stage: Stage, tally: Tally) -> None:
    """Asks the doctor about a home in which everything is wrong."""
    home = stage.new_folder()
    for name in ("data", "models", "runs"):
        (home / name).write_text("a file")
    (home / "secrets").mkdir(mode=0o755)
    done = subprocess.run(
        [sys.executable, "-m", "lectern", "doctor", "--home", str(home), "--json"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = {entry["subject"]: entry["outcome"] for entry in json.loads(done.stdout)["findings"]}
    wanted = {"data root": "fail", "models root": "fail", "runs root": "fail"}
    wanted["secrets root"] = "warn"
    wrong = {name: told.get(name) for name in wanted if told.get(name) != wanted[name]}
    tally.count(done.returncode == 1 and not wrong, f"the doctor says {wrong}")
