"""The database: made once, migrated, backed up, and never replaced when it is damaged."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from control_plane.runs.commands import RunCommands
from control_plane.runs.queries import Runs
from control_plane.runs.search import FoundRuns, Search
from control_plane.runs.store import Store, metadata, newest_schema
from lectern_common.errors import Misconfigured
from tests.control_plane.conftest import ROOT, spec

MIGRATIONS = ROOT / "control_plane" / "migrations"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "control-plane.sqlite3"


def filled(path: Path) -> str:
    store = Store.open(path)
    run = RunCommands(store).create(spec())
    store.close()
    return run.id


def test_the_migrations_make_the_tables_that_the_code_uses(path):
    store = Store.open(path)
    with store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        differences = compare_metadata(context, metadata)
    store.close()
    assert [difference for difference in differences if "alembic" not in str(difference)] == []


def test_rows_are_there_at_the_next_start(path):
    run_id = filled(path)
    store = Store.open(path)
    assert Runs(store).get(run_id).id == run_id
    store.close()


def test_writers_wait_for_each_other_instead_of_failing(path):
    """A transaction that reads and then writes must not lose against another writer."""
    store = Store.open(path)
    runs, commands = Runs(store), RunCommands(store)
    with store.reading() as reader:
        reader.exec_driver_sql("SELECT count(*) FROM runs").scalar()
        commands.create(spec())
        assert reader.exec_driver_sql("SELECT count(*) FROM runs").scalar() == 0
    assert len(runs.search(Search(), None, 10).runs) == 1
    store.close()


def test_a_transaction_that_raises_leaves_nothing(path):
    store = Store.open(path)
    with pytest.raises(RuntimeError), store.writing() as connection:
        connection.exec_driver_sql("CREATE TABLE half (x)")
        raise RuntimeError
    with store.reading() as connection:
        assert "half" not in sa.inspect(connection).get_table_names()
    store.close()


def test_a_killed_migration_is_completed_by_the_next_start(path, monkeypatch):
    monkeypatch.setattr("alembic.command.upgrade", interrupted_upgrade)
    with pytest.raises(KeyboardInterrupt):
        Store.open(path)
    monkeypatch.undo()
    store = Store.open(path)
    assert Runs(store).search(Search(), None, 10) == FoundRuns([], 0, 0)
    store.close()


def interrupted_upgrade(config, _revision):
    config.attributes["connection"].exec_driver_sql("CREATE TABLE runs (seq INTEGER)")
    raise KeyboardInterrupt


def test_the_newest_schema_is_that_of_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert newest_schema() == ScriptDirectory.from_config(config).get_current_head()


def test_a_database_that_is_up_to_date_is_opened_without_alembic(path):
    filled(path)
    program = (
        "import sys; from pathlib import Path; from control_plane.runs.store import Store; "
        "Store.open(Path(sys.argv[1])).close(); sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


def test_the_slot_of_a_run_of_an_earlier_release_becomes_its_list_of_slots(path):
    path.parent.mkdir()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    before = ScriptDirectory.from_config(config).get_revision("0004").down_revision
    assert isinstance(before, str)
    with sqlite3.connect(path) as connection:
        engine = sa.create_engine("sqlite://", creator=lambda: connection)
        with engine.begin() as config.attributes["connection"]:
            command.upgrade(config, before)
        ids = {"on-gpu": "cuda:GPU-1a", "on-cpu": "cpu", "resting": None}
        for seq, (run_id, slot) in enumerate(ids.items()):
            row = (seq, run_id, "x", "{}", 0.0, "running", "running", 0.0, seq, 1, 0, 0.0, slot)
            connection.execute(
                "INSERT INTO runs (seq, id, name, spec, created_at, wanted, state, since, revision,"
                " attempt, restarts, active_seconds, slot) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                row,
            )
    connection.close()
    store = Store.open(path)
    assert {run.id: run.slots for run in Runs(store).search(Search(), None, 10).runs} == {
        "on-gpu": ["cuda:GPU-1a"],
        "on-cpu": ["cpu"],
        "resting": None,
    }
    store.close()


def test_a_database_of_a_newer_release_is_refused(path):
    filled(path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(Misconfigured, match="newer release"):
        Store.open(path)
