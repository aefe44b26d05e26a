"""What run folders take on disk, measured slowly, and what removing them frees."""

import os
from pathlib import Path

import pytest

from control_plane.runs.keeping.deletion import delete_run
from control_plane.runs.keeping.sizes import (
    ACTIVE_SECONDS,
    CPU_SECONDS,
    PLAN_SECONDS,
    RESTING_SECONDS,
    RunSizes,
    entries_of,
    freed_bytes,
    size_of,
)
from control_plane.runs.search import Search
from lectern_common.run.folder import RunFolder
from tests.support.fakes import FakeClock

KB = 4096


def measured(path: Path) -> int:
    found = size_of(path)
    assert found is not None
    return found


def write(path: Path, num_bytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * num_bytes)
    return path


def test_the_size_counts_hard_links_once_and_follows_no_link(tmp_path):
    run, elsewhere = tmp_path / "run", write(tmp_path / "elsewhere", 1 << 20)
    weights = write(run / "checkpoints" / "step-00000001" / "model", 64 * KB)
    empty = measured(run) - 64 * KB
    (run / "export").mkdir()
    os.link(weights, run / "export" / "model")
    (run / "far").symlink_to(elsewhere)
    (run / "up").symlink_to(tmp_path)
    found = measured(run)
    assert 64 * KB <= found <= 64 * KB + empty + 8 * KB
    assert size_of(tmp_path / "none") is None


def test_a_sparse_file_counts_what_it_takes(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert measured(tmp_path) < 1 << 20


def test_files_with_a_name_in_a_run_that_stays_free_nothing(tmp_path):
    first, second, third = (tmp_path / name for name in ("a", "b", "c"))
    shared = write(first / "weights", 64 * KB)
    write(first / "own", 16 * KB)
    for other in (second, third):
        other.mkdir()
        os.link(shared, other / "weights")
    folders = [entries_of(path) for path in (first, second, third)]
    frees = [freed_bytes(folders[:count]) for count in (1, 2, 3)]
    small = freed_bytes([folders[1]])
    assert frees[0] == measured(first) - 64 * KB
    assert frees[1] == frees[0] + small
    assert frees[2] == frees[1] + small + 64 * KB
    assert freed_bytes([]) == 0


class Measuring:
    def __init__(self, bench) -> None:
        self.clock, self.cpu = FakeClock(0), FakeClock(0)
        self.bench = bench
        self.sizes = RunSizes(bench.runs, bench.commands, bench.roots.runs, self.clock, self.cpu)

    def look(self, seconds: float = PLAN_SECONDS) -> None:
        self.clock.advance(seconds)
        self.sizes.look()

    def known(self, run_id: str) -> int | None:
        known: int | None = self.bench.runs.get(run_id).disk_bytes
        return known


@pytest.fixture
def measuring(bench) -> Measuring:
    return Measuring(bench)


def test_runs_are_measured_and_those_that_train_again(bench, measuring):
    run, waiting = bench.started(), bench.create()
    folder = bench.roots.runs / run.id
    measuring.look()
    assert measuring.known(run.id) == measured(folder)
    assert measuring.known(waiting.id) is None  # it has no folder yet
    write(folder / "more", 64 * KB)
    measuring.look()
    assert measuring.known(run.id) == measured(folder) - 64 * KB
    measuring.look(ACTIVE_SECONDS)
    assert measuring.known(run.id) == measured(folder)


def test_a_run_that_has_come_to_rest_is_measured_once_more_and_then_rarely(bench, measuring):
    run = bench.started()
    folder = bench.roots.runs / run.id
    measuring.look()
    write(folder / "export" / "model", 64 * KB)
    bench.processes.last(run.id).say("succeeded", step=20)
    bench.processes.last(run.id).end()
    bench.tick()
    measuring.look()
    final = measuring.known(run.id)
    assert final == measured(folder)
    write(folder / "by hand", 64 * KB)
    measuring.look(ACTIVE_SECONDS)
    assert measuring.known(run.id) == final
    measuring.look(RESTING_SECONDS)
    assert measuring.known(run.id) == final + 64 * KB


def test_only_news_is_a_change_of_the_run(bench, measuring):
    bench.started()
    measuring.look()
    revision = bench.runs.newest_revision()
    measuring.look(RESTING_SECONDS)
    assert bench.runs.newest_revision() == revision


def test_a_run_that_vanishes_meanwhile_is_passed_over(bench, measuring, monkeypatch):
    gone, stays = bench.started(), bench.started()
    bench.processes.last(gone.id).say("failed", step=3)
    bench.processes.last(gone.id).end(1)
    bench.tick()
    as_planned = measuring.sizes._plan
    monkeypatch.setattr(measuring.sizes, "_plan", lambda: [*as_planned(), ("never", ("x", 0.0))])

    def deleting(path: Path) -> int | None:
        if path.name == gone.id and path.exists():
            delete_run(bench.commands, RunFolder(path))
        return size_of(path)

    monkeypatch.setattr("control_plane.runs.keeping.sizes.size_of", deleting)
    measuring.look()
    assert measuring.known(stays.id) is not None
    assert [run.id for run in bench.runs.search(Search(), None, 9).runs] == [stays.id]


def test_measuring_takes_no_more_than_its_share_of_cpu(bench, measuring, monkeypatch):
    """Each folder takes the time of five looks: so one look in five measures one."""
    for _ in range(4):
        bench.create()
    names: list[str] = []

    def slow(path: Path) -> int:
        measuring.cpu.advance(5 * CPU_SECONDS)
        names.append(path.name)
        return 1

    monkeypatch.setattr("control_plane.runs.keeping.sizes.size_of", slow)
    for _ in range(11):
        measuring.look(2)
    assert len(names) == len(set(names)) == 3


def test_runs_are_sorted_by_size_and_unmeasured_ones_come_last(bench):
    big, small, unmeasured = bench.create(), bench.create(), bench.create()
    bench.commands.measured({big.id: 5000, small.id: 10})
    found = bench.runs.search(Search(sort="-disk_bytes"), None, 10).runs
    assert [run.id for run in found] == [big.id, small.id, unmeasured.id]
    found = bench.runs.search(Search(sort="disk_bytes"), None, 10).runs
    assert [run.id for run in found] == [small.id, big.id, unmeasured.id]
