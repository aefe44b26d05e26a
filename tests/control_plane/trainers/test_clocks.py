"""Clocks that are set while trainers run, and trainers of the release before."""

import errno
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from control_plane.runs.commands import RunCommands
from control_plane.trainers.launching.processes import LocalProcesses
from control_plane.trainers.reconciler import Reconciler
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import Identity, identity_of, is_alive
from tests.control_plane.conftest import STAND_IN, wait_for
from tests.control_plane.trainers.test_reconciler import seen
from tests.support.fakes import FakeClock

HOUR = 3600.0


def wall_of(bench) -> FakeClock:
    """Returns a wall clock of its own for the bench's rows; `bench.clock` stays monotonic."""
    wall = FakeClock()
    bench.commands = RunCommands(bench.store, wall)
    bench.restart()
    return wall


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_clock_step_loses_no_trainer_and_ends_no_grace(bench, step):
    wall = wall_of(bench)
    run, stopping = bench.started("one"), bench.started("two")
    bench.commands.request_stop(stopping.id)
    bench.tick(1)
    wall.advance(step)
    for _ in range(2):
        bench.tick(20)
        bench.restart()  # another control plane adopts them, and begins their graces anew
    assert seen(bench, run.id) == ("running", None)
    assert not any(process.killed for process in bench.processes.started)
    bench.tick()
    bench.tick(61)
    assert bench.processes.last(stopping.id).killed and not bench.processes.last(run.id).killed


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_run_that_waits_for_its_restart_is_not_stuck_by_a_clock_step(bench, step):
    wall = wall_of(bench)
    run = bench.started()
    bench.processes.last().end(-9)
    bench.tick(1)
    assert seen(bench, run.id) == ("interrupted", "killed")
    wall.advance(step)
    bench.tick(0.5)
    assert seen(bench, run.id) == ("interrupted", "killed")  # its delay is a second
    bench.tick(1)
    assert bench.processes.resumed == [False, True]


def test_a_signal_of_an_earlier_control_plane_is_sent_again_after_the_clock_was_set_back(bench):
    wall = wall_of(bench)
    run = bench.started()
    bench.commands.request_stop(run.id)
    bench.commands.stop_sent(run.id)  # and then it died
    wall.advance(-HOUR)
    bench.restart()
    bench.tick(1)
    bench.tick(10)
    assert bench.processes.last().terminated == 1


def test_an_identity_is_of_one_boot_and_one_start(tmp_path):
    proc = tmp_path / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("first\n")
    (proc / "7").mkdir()
    stat = "7 (a ) Z (b) {} " + " ".join(str(field) for field in range(4, 22)) + " 4242 0 0"
    (proc / "7" / "stat").write_text(stat.format("S"))
    process = Identity(7, "first", 4242)
    assert identity_of(7, proc) == process and is_alive(process, proc)
    assert not is_alive(replace(process, start_ticks=4243), proc)
    (proc / "sys/kernel/random/boot_id").write_text("second\n")
    assert not is_alive(process, proc)
    (proc / "7" / "stat").write_text(stat.format("Z"))
    assert identity_of(7, proc) is None
    assert identity_of(7, proc, ended_too=True) == Identity(7, "second", 4242)
    assert identity_of(8, proc) is None


def test_a_kernel_that_hides_its_boot_id_shows_its_processes_all_the_same(tmp_path):
    """As in a container that masks /proc/sys; and rows that were written outside of it."""
    proc = tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    fields = " ".join(str(field) for field in range(4, 22))
    (proc / "7" / "stat").write_text(f"7 (a) S {fields} 4242 0 0")
    assert identity_of(7, proc) == Identity(7, "", 4242)
    for boot in ("", "before it was hidden"):
        assert is_alive(Identity(7, boot, 4242), proc)
        assert not is_alive(Identity(7, boot, 4243), proc)
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("first\n")
    assert is_alive(Identity(7, "", 4242), proc)
    assert not is_alive(Identity(7, "second", 4242), proc)


def test_a_process_that_cannot_be_looked_at_is_not_taken_for_gone(monkeypatch):
    me = identity_of(os.getpid())
    assert me is not None

    def no_descriptor(path):
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_bytes", no_descriptor)
    with pytest.raises(OSError, match="Too many open files"):
        is_alive(me)


def test_a_status_that_names_a_process_of_someone_else_is_not_believed(bench, tmp_path):
    """Neither does it hold the folder's lock, nor does its command line name the folder."""
    run = bench.create()
    folder = RunFolder.create(tmp_path / "runs", run.id, run.run_spec)
    me = identity_of(os.getpid())
    assert me is not None
    assert LocalProcesses(STAND_IN).find(folder, me) is None
    with folder.locked():
        assert LocalProcesses(STAND_IN).find(folder, me) == me


@pytest.mark.parametrize("recorded", [True, False])
def test_a_trainer_of_the_release_before_is_adopted_and_its_end_is_believed(bench, recorded):
    """Its status has version 1: a create time by the wall clock, no boot id and no attempt."""
    run = bench.started()
    old: dict[str, Any] = {"version": 1, "boot_id": None, "start_ticks": None, "attempt": None}
    old["process_create_time"] = 500.0
    process = bench.processes.last()
    process.say("running", step=2, **old)
    with bench.store.writing() as connection:
        handle = f"'local:{process.identity.pid}'" if recorded else "NULL"
        row = f"handle = {handle}, status = NULL, process_create_time = 501"
        connection.execute(sa.text(f"UPDATE runs SET {row}"))  # noqa: S608
    bench.restart()
    bench.tick(1)
    adopted = bench.runs.get(run.id)
    assert adopted.process == process.identity and adopted.last_status.step == 2
    process.say("succeeded", step=20, **old)
    process.end(0)
    bench.tick(1)
    assert seen(bench, run.id) == ("succeeded", None)


@pytest.mark.slow
@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_a_real_trainer_whose_clock_is_an_hour_off_is_adopted_and_stopped(bench, offset):
    """Its clock, not the machine's, is moved by libfaketime."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed (Debian: apt-get install faketime)")
    preload = subprocess.run(
        [faketime, "now", sys.executable, "-c", "import os; print(os.environ['LD_PRELOAD'])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    environment = {"LD_PRELOAD": preload, "FAKETIME": offset}
    run = bench.create(schedule={"steps": 100_000, "warmup_steps": 0})
    first = LocalProcesses(STAND_IN, environment)
    for launcher in (first, LocalProcesses(STAND_IN)):
        parts = (bench.runs, bench.commands, bench.roots, launcher, bench.devices, bench.clock)
        reconciler = Reconciler(*parts)

        def trains(reconciler: Reconciler = reconciler) -> bool:
            reconciler.tick()
            return bool(bench.runs.get(run.id).state == "running")

        wait_for(trains, 60)
    found = bench.runs.get(run.id)
    assert found.attempt == 1 and found.last_status.attempt == 1
    wall = bench.clock.now if found.last_status is None else found.last_status.heartbeat
    assert abs(wall - os.stat(bench.store.path).st_mtime) > HOUR / 2
    bench.commands.request_stop(run.id)

    def stopped() -> bool:
        reconciler.tick()
        return bool(bench.runs.get(run.id).state == "stopped")

    wait_for(stopped, 60)
    for child in first._children.values():
        child.wait()
