"""Backups of the database: whole, verified, few, and named when the database is lost."""

import shlex
import sqlite3
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from control_plane.plane import open_plane
from control_plane.runs.commands import RunCommands
from control_plane.runs.keeping.backups import (
    BackupFailed,
    Backups,
    Kind,
    PeriodicBackups,
    path_of_earlier_releases,
    problem_of,
)
from control_plane.runs.queries import Runs
from control_plane.runs.store import Store
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.errors import Misconfigured
from lectern_common.run.status import RunState
from tests.control_plane.conftest import ROOT, make_home, spec
from tests.support.fakes import FakeClock, FakeProcesses


class Kept:
    """A database with its backups, by a clock that a test moves."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.clock = FakeClock(1_790_000_000)
        self.path = folder / "runs" / "plane of mine.sqlite3"
        self.backups = Backups(self.path, folder / "backups", keep, self.clock)

    def add(self) -> str:
        store = Store.open(self.path, self.backups)
        run = RunCommands(store).create(spec())
        store.close()
        return run.id

    def make(self, kind: Kind = Kind.PERIOD) -> Path | None:
        self.clock.advance(3600)
        return self.backups.make(kind)

    def ids(self) -> set[str]:
        store = Store.open(self.path, self.backups)
        found = {run.id for run in Runs(store).in_states([RunState.QUEUED])}
        store.close()
        return found

    def refusal(self) -> str:
        with pytest.raises(Misconfigured) as refused:
            Store.open(self.path, self.backups)
        return str(refused.value)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_a_backup_has_every_row_and_nothing_lies_beside_it(kept):
    run_id = kept.add()
    made = kept.make()
    assert made is not None
    kept.path.write_bytes(made.read_bytes())
    assert kept.ids() == {run_id}
    assert [path.name for path in kept.backups.folder.iterdir()] == [made.name]


def test_a_backup_of_a_database_in_use_has_what_was_committed(kept):
    first = kept.add()
    store = Store.open(kept.path, kept.backups)
    commands = RunCommands(store)
    second = commands.create(spec()).id
    with store.writing() as connection:
        connection.exec_driver_sql("UPDATE runs SET name = 'half'")
        made = kept.make()
    store.close()
    assert made is not None
    with sqlite3.connect(made) as copy:
        rows = copy.execute("SELECT id, name FROM runs ORDER BY seq").fetchall()
    copy.close()
    assert rows == [(first, "steady"), (second, "steady")]


def test_none_is_made_if_nothing_has_changed_since_the_newest(kept):
    kept.add()
    first = kept.make()
    assert kept.make() is None
    assert kept.make(Kind.START) is None
    kept.add()
    assert kept.make() is not None
    assert first is not None


def test_few_are_kept_of_each_kind_and_never_fewer_because_the_clock_went_back(kept):
    made = []
    for kind in (Kind.PERIOD, Kind.START, Kind.PERIOD, Kind.MIGRATION, Kind.START, Kind.PERIOD):
        kept.add()
        kept.clock.advance(-20_000)
        made.append(kept.make(kind))
    assert [one.path for one in kept.backups.all()] == [made[5], made[4], made[3], made[2]]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "overwritten page", "empty", "gone"])
def test_a_lost_database_is_restored_by_the_commands_that_its_refusal_names(kept, damage):
    run_id = kept.add()
    kept.make()
    kept.clock.advance(3 * 3600)
    lost = kept.add()
    data = bytearray(kept.path.read_bytes())
    if damage == "garbage":
        data[:] = b"not a database at all" * 100
    elif damage == "truncated":
        del data[len(data) // 2 :]
    elif damage == "overwritten page":
        data[4096:8192] = b"\xff" * 4096
    elif damage in ("empty", "gone"):
        data.clear()
    kept.path.write_bytes(data)
    if damage == "gone":
        kept.path.unlink()
    said = kept.refusal()
    assert "made 3.0 h ago" in said and "lectern runs adopt --all" in said
    assert (kept.path.read_bytes() if kept.path.exists() else b"") == data
    before, _, after = said.partition("; start it again")
    commands = before[before.index("rm -f") :]
    subprocess.run(["sh", "-c", commands], check=True)
    assert kept.ids() == {run_id} and lost != run_id
    assert shlex.quote(str(kept.path)) in commands and after


def test_a_damaged_backup_is_not_advised(kept):
    kept.add()
    good = kept.make()
    kept.add()
    bad = kept.make()
    assert good is not None and bad is not None
    bad.write_bytes(bad.read_bytes()[:5000])
    kept.path.write_bytes(b"x" * 5000)
    said = kept.refusal()
    assert good.name in said and bad.name not in said
    good.write_bytes(b"")
    kept.path.unlink()
    assert "there is no good backup" in kept.refusal()
    assert not kept.path.exists()


def test_the_backup_of_an_earlier_release_is_advised_and_goes_once_there_is_a_new_one(kept):
    run_id = kept.add()
    earlier = path_of_earlier_releases(kept.path)
    earlier.write_bytes(kept.path.read_bytes())
    whole = kept.path.read_bytes()
    kept.path.write_bytes(b"x" * 100)
    assert shlex.quote(str(earlier)) in kept.refusal()
    kept.path.write_bytes(whole)
    assert kept.ids() == {run_id}
    kept.make()
    assert not earlier.exists()


def test_a_database_is_backed_up_before_a_migration_and_not_migrated_if_it_cannot_be(kept):
    kept.path.parent.mkdir()
    config = Config()
    config.set_main_option("script_location", str(ROOT / "control_plane" / "migrations"))
    config.set_main_option("path_separator", "os")
    import sqlalchemy as sa

    engine = sa.create_engine(f"sqlite:///{kept.path}")
    with engine.begin() as config.attributes["connection"]:
        command.upgrade(config, "0002")
    engine.dispose()
    kept.backups.folder.write_text("a file")
    assert "needs a backup before it is changed" in kept.refusal()
    kept.backups.folder.unlink()
    Store.open(kept.path, kept.backups).close()
    [made] = kept.backups.all()
    assert made.kind == Kind.MIGRATION
    with sqlite3.connect(made.path) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
    copy.close()
    Store.open(kept.path, kept.backups).close()
    assert len(kept.backups.all()) == 1


def test_a_failed_backup_leaves_nothing_and_keeps_the_others(kept, monkeypatch):
    kept.add()
    good = kept.make()
    kept.add()
    with monkeypatch.context() as broken:
        broken.setattr(
            "control_plane.runs.keeping.backups.problem_of", lambda path: "a page is lost"
        )
        with pytest.raises(BackupFailed, match="a page is lost"):
            kept.make()
        full = OSError(28, "No space left on device")
        broken.setattr(
            "control_plane.runs.keeping.backups._copy", lambda *_: (_ for _ in ()).throw(full)
        )
        with pytest.raises(BackupFailed, match=r"No space left.*LECTERN_BACKUPS_ROOT"):
            kept.make()
    assert list(kept.backups.folder.iterdir()) == [good]


def test_the_period_is_kept_and_a_failure_is_logged_once_and_tried_again(kept, capsys):
    clock = FakeClock(0)
    periodic = PeriodicBackups(kept.backups, 6, clock)
    kept.add()
    periodic.look()
    assert kept.backups.all() == []
    kept.backups.folder.write_text("a file in its place")
    clock.advance(6 * 3600)
    for _ in range(5):
        periodic.look()
        clock.advance(601)
    assert capsys.readouterr().err.count("not backed up") <= 1
    kept.backups.folder.unlink()
    periodic.look()
    assert [one.kind for one in kept.backups.all()] == [Kind.PERIOD]
    kept.add()
    clock.advance(5 * 3600)
    periodic.look()
    assert len(kept.backups.all()) == 1
    clock.advance(3600)
    periodic.look()
    assert len(kept.backups.all()) == 2


def test_period_zero_makes_none(kept):
    clock = FakeClock(0)
    periodic = PeriodicBackups(kept.backups, 0, clock)
    kept.add()
    clock.advance(1e9)
    periodic.start()
    periodic.look()
    periodic.close()
    assert kept.backups.all() == []
    assert "backups" not in [thread.name for thread in threading.enumerate()]


def test_a_plane_backs_up_at_its_start_and_starts_although_that_fails(tmp_path):
    roots = make_home(tmp_path)

    def opened():
        processes = FakeProcesses(FakeClock())
        plane = open_plane(roots, devices=Devices((), 1), launcher=LocalLauncher(processes))
        plane.close()
        return plane

    opened()
    [first] = roots.backups.iterdir()
    assert problem_of(first) is None
    assert datetime.strptime(first.name.split("-")[3], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    first.unlink()
    roots.backups.rmdir()
    roots.backups.write_text("a file")
    opened()
    assert roots.backups.read_text() == "a file"


def test_a_folder_that_cannot_be_listed_fails_the_backup_and_not_the_control_plane(kept, tmp_path):
    kept.add()
    backups = Backups(kept.path, tmp_path / ("x" * 300))
    with pytest.raises(BackupFailed, match="File name too long"):
        backups.make(Kind.PERIOD)
