"""Real processes: identified by pid, boot and start ticks, killed with all that they started."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from control_plane.trainers.launching.fork_server import ForkServer
from control_plane.trainers.launching.processes import LocalProcesses
from control_plane.trainers.reconciler import Reconciler
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Identity, identity_of
from tests.control_plane.conftest import STAND_IN, STAND_IN_FORK_SERVER, spec, wait_for


@pytest.fixture(params=["started afresh", "forked"])
def launcher(request: pytest.FixtureRequest) -> Iterator[LocalProcesses]:
    server = None
    if request.param == "forked":
        server = ForkServer(1, STAND_IN_FORK_SERVER)
        wait_for(server.is_ready)
    launcher = LocalProcesses(STAND_IN, {"LECTERN_TEST": "from the launcher"}, server)
    yield launcher
    if server is not None:
        for pid in server.living:
            os.killpg(pid, signal.SIGKILL)
        server.close()
    for child in launcher._children.values():
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def folder_of(tmp_path: Path, name: str = "steady", steps: int = 100_000) -> RunFolder:
    run_spec = spec(name, schedule={"steps": steps, "warmup_steps": 0})
    return RunFolder.create(tmp_path, f"{name}-1", run_spec)


def start(launcher: LocalProcesses, folder: RunFolder, *, resume: bool = False) -> Identity:
    process = launcher.start(folder, resume=resume, environment={})
    wait_for(lambda: (status := folder.read_status()) and status.state == "running")
    return process


def gone(launcher: LocalProcesses, process: Identity) -> None:
    wait_for(lambda: not launcher.is_alive(process))


def environment_of(folder: RunFolder) -> dict[str, str]:
    """Returns the environment that the folder's stand-in trainer saw."""
    [launch] = read_json_lines(folder.path / "launches.jsonl")
    environment: dict[str, str] = launch["environment"]
    return environment


def test_a_trainer_leads_a_session_of_its_own_and_writes_to_its_log(launcher, tmp_path):
    folder = folder_of(tmp_path)
    process = start(launcher, folder)
    assert os.getsid(process.pid) == process.pid
    assert environment_of(folder)["LECTERN_TEST"] == "from the launcher"
    assert "training steady-1 from step 0" in folder.log_path.read_text()
    launcher.kill(process)
    gone(launcher, process)


def test_the_slot_reaches_the_trainer(launcher, tmp_path):
    folder = folder_of(tmp_path)
    process = launcher.start(folder, resume=False, environment={"CUDA_VISIBLE_DEVICES": "3"})
    wait_for(folder.read_status)
    assert environment_of(folder)["CUDA_VISIBLE_DEVICES"] == "3"
    launcher.kill(process)
    gone(launcher, process)


def test_sigterm_ends_a_trainer_with_a_checkpoint_and_its_exit_status_is_known(launcher, tmp_path):
    folder = folder_of(tmp_path)
    process = start(launcher, folder)
    launcher.terminate(process)
    gone(launcher, process)
    status = folder.read_status()
    assert status is not None and status.state == "stopped"
    assert launcher.exit_status(process) == 0


def test_a_killed_child_leaves_no_zombie_and_its_signal_is_known(launcher, tmp_path):
    process = start(launcher, folder_of(tmp_path))
    os.kill(process.pid, signal.SIGKILL)
    gone(launcher, process)
    assert launcher.exit_status(process) == -signal.SIGKILL
    assert not psutil.pid_exists(process.pid)


def test_a_zombie_of_another_parent_counts_as_dead(launcher):
    program = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', '']); "
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin and parent.stdout
        pid = int(parent.stdout.readline())
        zombie = psutil.Process(pid)
        wait_for(lambda: zombie.status() == psutil.STATUS_ZOMBIE)
        identity = identity_of(pid, ended_too=True)
        assert identity is not None and not launcher.is_alive(identity)
        parent.stdin.close()


def test_a_process_with_other_start_ticks_is_a_different_process(launcher, tmp_path):
    process = start(launcher, folder_of(tmp_path))
    reused = replace(process, start_ticks=process.start_ticks - 1)
    other = LocalProcesses(STAND_IN)
    assert other.is_alive(process)
    assert not other.is_alive(reused)
    other.terminate(reused)
    other.kill(reused)
    assert other.is_alive(process)
    launcher.kill(process)
    gone(launcher, process)


def test_a_process_of_another_user_is_reported_and_left_alone(launcher, monkeypatch):
    def denied(_process: psutil.Process, *_: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "send_signal", denied)
    monkeypatch.setattr(psutil.Process, "terminate", denied)
    me = identity_of(os.getpid())
    assert me is not None
    with pytest.raises(PermissionError, match=f"cannot signal process {os.getpid()}"):
        launcher.terminate(me)
    launcher.kill(me)


def test_a_trainer_is_found_by_its_folder(launcher, tmp_path):
    folder, other = folder_of(tmp_path), folder_of(tmp_path, "other")
    assert launcher.find(folder) is None
    process = start(launcher, folder)
    assert LocalProcesses(STAND_IN).find(folder) == process
    assert launcher.find(other) is None
    launcher.kill(process)
    gone(launcher, process)
    assert launcher.find(folder) is None


@pytest.mark.parametrize("spawned", [False, True])
def test_a_control_plane_killed_while_it_starts_a_run_leaves_one_trainer(
    launcher, bench, tmp_path, spawned
):
    """Killed before the process is started, or before its pid is recorded."""
    run = bench.create(schedule={"steps": 100_000, "warmup_steps": 0})
    folder = RunFolder(bench.roots.runs / run.id)
    bench.commands.claim(run.id, ("cpu",))
    if spawned:
        start(launcher, RunFolder.create(bench.roots.runs, run.id, run.run_spec))
    reconciler = Reconciler(
        bench.runs, bench.commands, bench.roots, launcher, bench.devices, bench.clock
    )
    reconciler.tick()
    wait_for(lambda: (status := folder.read_status()) and status.state == "running")
    for _ in range(3):
        reconciler.tick()
    found = bench.runs.get(run.id)
    status = folder.read_status()
    assert status is not None
    assert (found.state, found.pid) == ("running", status.pid)
    assert len(read_json_lines(folder.path / "launches.jsonl")) == 1
    launcher.kill(found.process)
    gone(launcher, found.process)


def test_another_program_that_names_the_folder_is_not_its_trainer(launcher, tmp_path):
    folder = folder_of(tmp_path)
    program = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as reader:
        assert reader.stdin and reader.stdout
        reader.stdout.readline()
        assert launcher.find(folder) is None
        reader.stdin.close()


def test_kill_ends_the_whole_session(launcher, tmp_path):
    """The trainer ignores SIGTERM and has a child that does so too."""
    process = start(launcher, folder_of(tmp_path, "stubborn"))
    [child] = wait_for(psutil.Process(process.pid).children)
    launcher.terminate(process)
    assert launcher.is_alive(process)
    launcher.kill(process)
    gone(launcher, process)
    wait_for(lambda: not is_running(child))


def test_processes_that_a_dead_trainer_left_behind_are_killed(launcher, tmp_path):
    process = start(launcher, folder_of(tmp_path, "stubborn"))
    [child] = wait_for(psutil.Process(process.pid).children)
    os.kill(process.pid, signal.SIGKILL)
    gone(launcher, process)
    assert is_running(child)
    launcher.kill(process)
    wait_for(lambda: not is_running(child))


def test_a_command_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        LocalProcesses(["/no/such/trainer"]).start(
            folder_of(tmp_path), resume=False, environment={}
        )


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_trainer_that_the_system_does_not_show_is_not_left_behind(tmp_path):
    folder = folder_of(tmp_path)
    (tmp_path / "proc").mkdir()
    launcher = LocalProcesses(STAND_IN, proc=tmp_path / "proc")
    with pytest.raises(OSError, match="does not show it") as raised:
        launcher.start(folder, resume=False, environment={})
    assert not psutil.pid_exists(int(str(raised.value).split()[1]))
