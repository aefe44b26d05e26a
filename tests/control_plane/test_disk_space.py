"""The disk of the runs is called too small before it is full."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from control_plane import disk_space
from control_plane.disk_space import (
    LEAST_WINDOW_SECONDS,
    MARGIN_BYTES,
    WINDOW_SECONDS,
    DiskWatch,
    bytes_of_run_to_come,
)
from lectern_common.checks.needs.estimate import bytes_to_come
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from tests.control_plane.conftest import Bench, spec
from tests.support.fakes import FakeClock

GB = 10**9
MB = 10**6


class Disk:
    """A disk of 1 TB of which a test says how much is free."""

    def __init__(self, bench: Bench, monkeypatch) -> None:
        self.bench = bench
        self.clock = FakeClock(0)
        self.free = 500 * GB
        self.watch = DiskWatch(bench.roots, self.clock)
        monkeypatch.setattr("shutil.disk_usage", lambda _: self)

    total = 1000 * GB

    def warning(self, seconds: float = 20) -> str | None:
        self.clock.advance(seconds)
        return self.watch.look(self.bench.runs.in_states([RunState.RUNNING])).warning


@pytest.fixture
def disk(bench, monkeypatch) -> Disk:
    return Disk(bench, monkeypatch)


def checkpoint(bench, run, step: int, num_bytes: int) -> None:
    path = RunFolder(bench.roots.runs / run.id).checkpoints_path / f"step-{step:08d}"
    path.mkdir(parents=True)
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(num_bytes)


def test_nothing_is_said_while_there_is_room(disk):
    assert disk.warning() is None


def test_a_disk_that_the_active_runs_will_fill_is_called_so_before_it_is_low(bench, disk):
    sections = {"checkpoint": {"every_steps": 5, "keep_last": 2, "keep_best": 0}}
    run = bench.started(schedule={"steps": 100, "warmup_steps": 0}, **sections)
    checkpoint(bench, run, 5, 300 * MB)
    # Kept are two, and one is being written: two more of 330 MB, and an export of a third of one.
    needed = 2 * 330 * MB + 110 * MB + MARGIN_BYTES
    disk.free = needed
    assert disk.warning() is None
    disk.free = needed - 1
    said = disk.warning()
    assert said.startswith("the disk of the runs will be full before the active runs end: 804 MB")
    assert "still write 804 MB of checkpoints and exports" in said and "lectern runs prune" in said
    disk.free = 330 * MB + MARGIN_BYTES - 1
    assert "is nearly full" in disk.warning()


def test_runs_at_rest_write_nothing_more(bench, disk):
    run = bench.started()
    checkpoint(bench, run, 5, 300 * MB)
    bench.processes.last(run.id).say("failed", step=7)
    bench.processes.last(run.id).end(1)
    bench.tick()
    disk.free = MARGIN_BYTES
    assert disk.warning() is None


def test_a_trend_is_told_with_the_hours_left_once_it_was_seen_for_long_enough(disk):
    for _ in range(int(LEAST_WINDOW_SECONDS // 20)):
        assert disk.warning() is None
        disk.free -= 200 * MB  # 36 GB an hour
    said = disk.warning()
    assert "it fills by 36 GB an hour and is full in 13.7 h" in said


def test_a_slow_trend_is_not_told(disk):
    for _ in range(60):
        disk.free -= 20 * MB
        assert disk.warning() is None


def test_checkpoints_that_come_and_go_are_no_trend(disk):
    """Ten GB are written at once and removed five minutes later, again and again."""
    for number in range(400):
        disk.free = (60 if number % 30 < 15 else 50) * GB
        if number > 180:
            assert disk.warning() is None, number
        else:
            disk.warning()


def test_what_was_seen_before_room_was_made_says_nothing(disk):
    for _ in range(60):
        disk.free -= 200 * MB
        disk.warning()
    disk.free += 100 * GB
    assert disk.warning() is None
    assert disk.watch.bytes_per_hour() is None


def test_only_the_last_hour_counts(disk):
    for _ in range(100):
        disk.free -= 200 * MB
        disk.warning()
    for _ in range(int(WINDOW_SECONDS // 20) + 1):
        said = disk.warning()
    assert said is None and disk.watch.bytes_per_hour() == pytest.approx(0)


def test_a_run_without_a_checkpoint_is_estimated_by_the_weights_that_it_starts_from(bench):
    folder = bench.roots.models / "small"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8}))
    save_file({"a": np.zeros((100, 30), np.float16)}, folder / "model.safetensors")
    run = bench.started(
        student={"init": "small"},
        schedule={"steps": 1000, "warmup_steps": 0},
        checkpoint={"every_steps": 500, "keep_last": 2, "keep_best": 1},
    )
    assert bytes_of_run_to_come(run, RunFolder(bench.roots.runs / run.id), bench.roots) == (
        2 * 12 * 3000 + 4 * 3000
    )


def test_a_damaged_row_or_folder_counts_as_one_checkpoint(bench):
    run = bench.started(student={"config": "tiny"})
    folder = RunFolder(bench.roots.runs / run.id)
    first = disk_space.FIRST_CHECKPOINT_BYTES
    assert bytes_of_run_to_come(run, folder, bench.roots) == first
    with bench.store.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET spec = '{}'")
    assert bytes_of_run_to_come(bench.runs.get(run.id), folder, bench.roots) == first


@pytest.mark.parametrize(
    ("step", "checkpoints", "expected"),
    [
        (0, 0, 4 * 120 + 40),  # three kept, one being written
        (100, 1, 3 * 120 + 40),
        (500, 3, 120 + 40),
        (500, 9, 120 + 40),  # left from a run that kept more
        (900, 3, 120 + 40),
        (950, 0, 120 + 40),  # the last one is all that comes
        (1000, 3, 40),
    ],
)
def test_a_run_adds_what_it_keeps_and_its_export(step, checkpoints, expected):
    wanted = spec(
        schedule={"steps": 1000, "warmup_steps": 0},
        checkpoint={"every_steps": 100, "keep_last": 2, "keep_best": 1},
    )
    assert bytes_to_come(wanted, step, checkpoints, 120, None) == expected
    assert bytes_to_come(wanted, step, checkpoints, None, 10) == expected
    assert bytes_to_come(wanted, step, checkpoints, None, None) is None


def test_the_warning_is_told_over_rest_and_logged_once(client, plane, monkeypatch, capsys):
    answer = client.get("/disk").json()
    assert set(answer) == {"total_bytes", "free_bytes", "needed_bytes", "low", "warning"}
    usage = type("Usage", (), {"total": 1 << 40, "free": MARGIN_BYTES - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    found = client.get("/disk").json()
    assert found["low"] and found["warning"].startswith("the disk of the runs is nearly full")
    assert client.get("/readyz").status_code == 200
