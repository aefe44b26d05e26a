"""The fork server: what it gives to trainers, what it must not know, and that anybody may die."""

import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from control_plane.trainers.launching.fork_server import (
    MAX_FAILURES,
    STEADY_SECONDS,
    Forked,
    ForkServer,
    NotForked,
    server_environment,
)
from control_plane.trainers.launching.processes import LocalProcesses
from control_plane.trainers.reconciler import Reconciler
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Identity
from tests.control_plane.conftest import (
    ROOT,
    STAND_IN,
    STAND_IN_FORK_SERVER,
    Bench,
    spec,
    wait_for,
)
from tests.support.fakes import FakeClock

# A server of programs that write what they see into the folder that they get.
SEES = """
import json, os, sys
from student_trainer.run import fork_server
def program():
    import torch
    torch.set_num_threads(torch.get_num_threads())
    product = torch.ones(512, 512) @ torch.ones(512, 512)
    seen = {
        "words": sys.argv[1:],
        "threads": torch.get_num_threads(),
        "product": product.sum().item(),
        "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cwd": os.getcwd(),
        "input": sys.stdin.read(),
        "open": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    }
    open(sys.argv[1] + "/seen.json", "w").write(json.dumps(seen))
    return 3
fork_server.main(sys.argv[1:], program, lambda: __import__("torch"))
"""
HAS_A_THREAD = """
import sys, threading, time
from student_trainer.run import fork_server
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
fork_server.main(sys.argv[1:], lambda: 0, lambda: None)
"""
# A control plane that forks one trainer for the folder that it gets, then waits.
A_PLANE = """
import sys
from pathlib import Path
from control_plane.trainers.launching.fork_server import ForkServer
from control_plane.trainers.launching.processes import LocalProcesses
from lectern_common.run.processes import Identity
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import STAND_IN, STAND_IN_FORK_SERVER, wait_for
server = ForkServer(1, STAND_IN_FORK_SERVER)
wait_for(server.is_ready)
process = LocalProcesses(STAND_IN, {}, server).start(
    RunFolder(Path(sys.argv[1])), resume=False, environment={}
)
print("pids", server.pid, process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer(1, STAND_IN_FORK_SERVER)
    with closing(server):
        wait_for(server.is_ready)
        yield server
        for pid in server.living:
            os.killpg(pid, signal.SIGKILL)


def new_folder(tmp_path: Path, name: str = "steady-1") -> RunFolder:
    return RunFolder.create(
        tmp_path, name, spec(name.partition("-")[0], schedule={"steps": 100_000, "warmup_steps": 0})
    )


def trains(folder: RunFolder) -> int:
    """Returns the step of a trainer once it has made one."""
    step: int = wait_for(lambda: step_of(folder))
    return step


def step_of(folder: RunFolder) -> int:
    status = folder.read_status()
    return 0 if status is None else status.step


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_forked_trainer_has_its_own_words_threads_devices_and_descriptors(tmp_path):
    with closing(ForkServer(1, [sys.executable, "-c", SEES])) as server:
        wait_for(server.is_ready, 120)
        launcher = LocalProcesses(["python", "-m", "student_trainer"], {}, server)
        environment = {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1,3"}
        folder = new_folder(tmp_path)
        process = launcher.start(folder, resume=True, environment=environment)
        wait_for(lambda: not launcher.is_alive(process), 60)
        assert launcher.exit_status(process) == 3
    seen = json.loads((folder.path / "seen.json").read_text())
    assert seen == {
        "words": [str(folder.path), "--resume"],
        "threads": 2,
        "product": 512.0**3,
        "devices": "1,3",
        "cwd": os.getcwd(),
        "input": "",
        "open": [0, 1, 2],
    }


def test_the_command_line_of_a_forked_trainer_is_that_of_a_fresh_one(server, tmp_path):
    folder = new_folder(tmp_path)
    process = LocalProcesses(STAND_IN, {}, server).start(folder, resume=False, environment={})
    trains(folder)
    argv = psutil.Process(process.pid).cmdline()
    assert argv[:3] == [*STAND_IN, str(folder.path)]
    assert set(argv[3:]) <= {""}
    assert LocalProcesses(STAND_IN).find(folder) == process


def test_a_command_line_without_room_is_not_shown_but_the_trainer_starts(server, tmp_path):
    deep = tmp_path / ("a" * 200) / ("b" * 200) / ("c" * 200) / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    folder = new_folder(deep)
    LocalProcesses(STAND_IN, {}, server).start(folder, resume=False, environment={})
    assert trains(folder)


SECRETS = {
    "HF_TOKEN": "hub-secret-4711",
    "WANDB_API_KEY": "wandb-secret-4711",
    "https_proxy": "http://me:proxy-secret-4711@proxy:1",
    "LECTERN_TOKEN": "lectern-secret-4711",
}


def test_the_server_holds_no_secret_even_after_it_has_forked_trainers_that_have(
    tmp_path, monkeypatch
):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with closing(ForkServer(1, STAND_IN_FORK_SERVER)) as server:
        wait_for(server.is_ready)
        folder = new_folder(tmp_path)
        process = LocalProcesses(STAND_IN, {}, server).start(folder, resume=False, environment={})
        trains(folder)
        [launch] = read_json_lines(folder.path / "launches.jsonl")
        told = {name: launch["environment"].get(name) for name in SECRETS}
        assert told == {**SECRETS, "LECTERN_TOKEN": None}
        assert server.pid is not None
        assert b"secret-4711" not in Path(f"/proc/{server.pid}/environ").read_bytes()
        assert b"secret-4711" not in memory_of(server.pid)
        assert b"hub-secret-4711" in memory_of(process.pid)  # so the search can find one
        os.killpg(process.pid, signal.SIGKILL)


def memory_of(pid: int) -> bytes:
    found = bytearray()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if area is None:
                continue
            begin, end = (int(number, 16) for number in area.groups())
            memory.seek(begin)
            try:
                found += memory.read(end - begin)
            except OSError:
                continue
    return bytes(found)


def test_the_server_has_the_variables_of_trainers_that_libraries_read_when_imported():
    env = {"PATH": "/bin", "HF_HOME": "/hub", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **SECRETS}
    assert server_environment(6, env) == {
        "PATH": "/bin",
        "HF_HOME": "/hub",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "6",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def test_trainers_outlive_a_killed_server_and_another_one_is_started(server, tmp_path, capsys):
    launcher = LocalProcesses(STAND_IN, {}, server)
    first, second, third = (new_folder(tmp_path, f"steady-{number}") for number in range(3))
    process = launcher.start(first, resume=False, environment={})
    before = trains(first)
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not is_running(killed))
    fresh = launcher.start(second, resume=False, environment={})
    assert "trainer not forked" in capsys.readouterr().err
    assert psutil.Process(fresh.pid).ppid() == os.getpid()
    wait_for(lambda: step_of(first) > before)
    assert launcher.is_alive(process)
    wait_for(server.is_ready)
    assert server.pid != killed
    forked = launcher.start(third, resume=False, environment={})
    assert psutil.Process(forked.pid).ppid() == server.pid
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not launcher.is_alive(process))
    assert launcher.exit_status(process) is None  # who knew it is gone
    for one in (fresh, forked):
        launcher.kill(one)
    wait_for(lambda: not launcher.is_alive(fresh) and not launcher.is_alive(forked))


def test_a_server_that_hangs_is_replaced_and_the_trainer_started_afresh(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr("control_plane.trainers.launching.fork_server.ANSWER_SECONDS", 0.2)
    stopped = server.pid
    os.kill(stopped, signal.SIGSTOP)
    launcher = LocalProcesses(STAND_IN, {}, server)
    folder = new_folder(tmp_path)
    process = launcher.start(folder, resume=False, environment={})
    assert trains(folder)
    assert not is_running(stopped)
    assert len(read_json_lines(folder.path / "launches.jsonl")) == 1
    launcher.kill(process)
    wait_for(lambda: not launcher.is_alive(process))


def test_a_killed_control_plane_takes_its_server_along_and_leaves_the_trainer(tmp_path):
    folder = new_folder(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", A_PLANE, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as plane:
        assert plane.stdout is not None
        told = next(line for line in plane.stdout if line.startswith("pids"))
        server_pid, trainer_pid = map(int, told.split()[1:])
        trains(folder)
        plane.kill()
    wait_for(lambda: not is_running(server_pid))
    found = LocalProcesses(STAND_IN).find(folder)
    assert found is not None and found.pid == trainer_pid
    LocalProcesses(STAND_IN).kill(found)
    wait_for(lambda: not is_running(trainer_pid))


def test_the_server_is_heard_however_many_descriptors_are_in_use(server, tmp_path):
    wait_for(server.is_ready)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, limits[1]), limits[1]))
    taken: list[int] = []
    try:
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not server.living and server.pid is None)
        while not taken or taken[-1] < 1024:  # as by connections
            taken.append(os.open(os.devnull, os.O_RDONLY))
        assert wait_for(server.is_ready)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_a_free_descriptor_no_server_is_started_and_nothing_is_raised(server):
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not server.living and server.pid is None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert not server.is_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert server.pid is None
    assert wait_for(server.is_ready)


def test_a_forked_process_that_nobody_tells_what_it_is_ends(server, tmp_path):
    """So ends one whose control plane was killed before it knew the pid."""
    folder = new_folder(tmp_path)
    with folder.log_path.open("ab") as log, server.forked(log.fileno()) as forked:
        assert is_running(forked.pid)
    assert wait_for(lambda: server.exit_status(forked.pid)) == 70
    assert not folder.status_path.exists()


class Hasty(ForkServer):
    """Yields processes that are killed before they are told what they are.

    Args:
        reaped: the server has waited for them as well, so that their pids are free.
    """

    reaped = False

    @contextmanager
    def forked(self, log: int) -> Iterator[Forked]:
        with super().forked(log) as forked:
            os.kill(forked.pid, signal.SIGKILL)
            wait_for(lambda: not (self.reaped and psutil.pid_exists(forked.pid)))
            wait_for(lambda: not is_running(forked.pid))
            yield forked


@pytest.mark.parametrize("reaped", [False, True])
def test_a_trainer_killed_before_it_is_told_what_to_do_counts_as_killed(tmp_path, reaped):
    """Not as one that cannot be started, which nothing would start again."""
    server = Hasty(1, STAND_IN_FORK_SERVER)
    server.reaped = reaped
    with closing(server):
        wait_for(server.is_ready)
        launcher = LocalProcesses(STAND_IN, {}, server)
        folder = new_folder(tmp_path)
        process = launcher.start(folder, resume=False, environment={})
        assert not launcher.is_alive(process)
        assert launcher.exit_status(process) == -signal.SIGKILL
        launcher.kill(process)
        assert not folder.status_path.exists()
        assert server.is_ready()


def test_a_run_whose_trainer_is_killed_before_it_is_told_restarts_by_itself(tmp_path):
    server = Hasty(1, STAND_IN_FORK_SERVER)
    bench = Bench.of(tmp_path)
    with closing(server):
        wait_for(server.is_ready)
        launcher = LocalProcesses(STAND_IN, bench.roots.environment(), server)
        loop = Reconciler(
            bench.runs, bench.commands, bench.roots, launcher, bench.devices, clock=bench.clock
        )
        run = bench.create()
        loop.tick()
        loop.tick()
        ended = bench.runs.get(run.id)
        assert (str(ended.state), ended.reason, ended.restarts) == ("interrupted", "killed", 1)
        assert "SIGKILL" in (ended.message or "")
        assert ended.resume_at is not None


def in_leaps(seconds: float = 100.0) -> Callable[[], float]:
    """Returns a clock that leaps ahead each time it is read: no delay lasts."""
    return itertools.count(0.0, seconds).__next__


def has_ended(launcher: LocalProcesses, process: Identity) -> bool:
    return not launcher.is_alive(process)


def kill_when_ready(server: ForkServer) -> None:
    wait_for(server.is_ready)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_for(lambda: not server.living and server.pid is None)


def test_a_server_that_dies_as_soon_as_it_is_ready_is_given_up_after_growing_delays(
    tmp_path, capsys
):
    clock = FakeClock()
    server = ForkServer(1, STAND_IN_FORK_SERVER, clock=clock)
    launcher = LocalProcesses(STAND_IN, {}, server)
    with closing(server):
        for delay in (1, 4, 16, 64):
            kill_when_ready(server)
            clock.advance(delay - 0.5)
            assert not server.is_ready() and server.pid is None
            assert server.given_up is None
            clock.advance(0.5)
        kill_when_ready(server)
        clock.advance(100_000)
        assert not server.is_ready() and server.pid is None
        assert launcher.slowed() == server.given_up
        assert "failed 5 times in a row" in (server.given_up or "")
        for number in range(2):
            folder = new_folder(tmp_path, f"steady-{number}")
            process = launcher.start(folder, resume=False, environment={})
            launcher.kill(process)
            wait_for(partial(has_ended, launcher, process))
        said = capsys.readouterr().err
        assert said.count("given up") == 1
        assert "trainer not forked" not in said


def test_a_server_that_was_steady_for_long_may_die_any_number_of_times(capsys):
    clock = FakeClock()
    server = ForkServer(1, STAND_IN_FORK_SERVER, clock=clock)
    with closing(server):
        for _ in range(MAX_FAILURES + 1):
            wait_for(server.is_ready)
            clock.advance(STEADY_SECONDS)
            kill_when_ready(server)
            clock.advance(1)
        assert wait_for(server.is_ready)


def test_readyz_says_that_trainers_are_not_forked_any_more(client, plane):
    assert "slowed" not in client.get("/readyz").json()
    plane.processes.slowed = lambda: "the fork server failed 5 times in a row; last: it has ended"
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert "trainers are started afresh" in answer.json()["slowed"]["fork_server"]


def test_a_server_with_a_thread_is_refused_and_not_tried_for_ever(tmp_path, capsys):
    """A lock that a thread holds would stay locked in a forked process."""
    server = ForkServer(1, [sys.executable, "-c", HAS_A_THREAD], clock=in_leaps())
    with closing(server):
        wait_for(lambda: not server.is_ready() and server.given_up)
        said = capsys.readouterr().err
        lost = [line for line in said.splitlines() if "fork server lost" in line]
        assert len(lost) == MAX_FAILURES
        assert all("importing has started 1 threads" in line for line in lost)
        folder = new_folder(tmp_path)
        with (
            folder.log_path.open("ab") as log,
            pytest.raises(NotForked, match="failed 5 times in a row"),
            server.forked(log.fileno()),
        ):
            pass


def test_a_server_that_cannot_be_started_does_not_keep_trainers_from_starting(tmp_path):
    launcher = LocalProcesses(STAND_IN, {}, ForkServer(1, ["/no/such/program"]))
    folder = new_folder(tmp_path)
    process = launcher.start(folder, resume=False, environment={})
    assert isinstance(process, Identity)
    assert trains(folder)
    launcher.kill(process)
    wait_for(lambda: not launcher.is_alive(process))
