"""The database of the control plane: SQLite through SQLAlchemy Core.

It lies beside the run folders, so that one volume holds both. At every start it is checked, and
migrated to the newest schema; backups.py backs it up. A damaged database stops the start, and is
never replaced by an empty one.
"""

import functools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from control_plane.runs.keeping.backups import BackupFailed, Backups, Kind
from control_plane.runs.keeping.room import Room
from lectern_common.errors import Misconfigured

DATABASE_NAME = "control-plane.sqlite3"
BUSY_TIMEOUT_MS = 2000
POOL_TIMEOUT_SECONDS = 5
_MIGRATIONS = Path(__file__).parent.parent / "migrations"

metadata = sa.MetaData()


def _of_both() -> list[sa.Column[Any]]:
    """Returns the columns that runs and tasks have in common; see runs.record.Job."""
    return [
        sa.Column("wanted", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False, index=True),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("message", sa.Text),
        sa.Column("revision", sa.Integer, nullable=False, unique=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("restarts", sa.Integer, nullable=False),
        sa.Column("resume_at", sa.Float),
        sa.Column("slots", sa.JSON(none_as_null=True)),
        sa.Column("threads", sa.Integer),
        sa.Column("launched_at", sa.Float),
        sa.Column("handle", sa.Text),
        sa.Column("stop_sent_at", sa.Float),
        sa.Column("active_since", sa.Float),
        sa.Column("active_seconds", sa.Float, nullable=False),
        sa.Column("status", sa.JSON(none_as_null=True)),
        sa.Column("queue_position", sa.Integer),
        sa.Column("waits_for", sa.Text),
    ]


# One row per run. See runs.record.Run for the columns; `seq` orders runs by creation.
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    *_of_both(),
    sa.Column("restart_checkpoint", sa.Integer),
    sa.Column("process_create_time", sa.Float),
    sa.Column("teacher", sa.JSON(none_as_null=True)),
    sa.Column("stale_since", sa.Float),
    sa.Column("stalled_since", sa.Float),
    sa.Column("heals", sa.Integer, nullable=False, server_default="0"),
    sa.Column("disk_bytes", sa.Integer),
    sa.Column("stop_at", sa.Text),
    sa.Column("forked_from", sa.JSON(none_as_null=True)),
    sa.Column("overdue_since", sa.Float),
)

# One row per task. See tasks.record.Task for the columns.
tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("run_id", sa.Text, index=True),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("asked", sa.JSON, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("by", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
    *_of_both(),
    sa.Column("restart_progress", sa.JSON(none_as_null=True)),
    sqlite_autoincrement=True,
)

# One row per deleted run or task: its id, and the revision of the deletion.
deleted_runs = sa.Table(
    "deleted_runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False, unique=True),
)

# One row per change of `state` or `wanted`, in the order they happened. `by` is who asked for it.
history = sa.Table(
    "history",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("wanted", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("by", sa.Text),
    sa.Index("history_by_run", "run_id", "seq"),
    sqlite_autoincrement=True,
)

# Which run or task a client's key made, and from which request.
idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_sha256", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# One row per sweep; `metric` and `goal` say how its runs are compared, `settings` are the dotted
# paths in which they differ, and `num_runs` is how many there were at first.
sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("metric", sa.Text, nullable=False),
    sa.Column("goal", sa.Text, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("num_runs", sa.Integer, nullable=False),
    sa.Column("key", sa.Text, unique=True),
    sa.Column("request_sha256", sa.Text, nullable=False),
)

# Which runs a sweep made. A deleted run has no row any more.
sweep_runs = sa.Table(
    "sweep_runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("sweep_id", sa.Text, nullable=False, index=True),
)

# One row per alert, see runs/alerts.py; also the outbox of its delivery.
alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False, unique=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("name", sa.Text),
    sa.Column("state", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("step", sa.Integer),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_try_at", sa.Float),
    sa.Column("delivered_at", sa.Float),
    sa.Column("last_error", sa.Text),
    sa.Column("folded_into", sa.Integer),
    sqlite_autoincrement=True,
)

# One row per condition of this control plane that holds now, and since when.
plane_conditions = sa.Table(
    "plane_conditions",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
)


def sound_json(column: sa.Column[Any]) -> sa.ColumnElement[Any]:
    """Returns a JSON column, null where it is not JSON: SQLite would fail for all rows."""
    return sa.type_coerce(sa.case((sa.func.json_valid(column) == 1, column)), sa.JSON)


class Store:
    """One SQLite file. Safe to use from several threads; one process writes it at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.room = Room(path.with_name(f"{path.name}.reserve"))
        self._engine = _engine(path)

    @classmethod
    def open(cls, path: Path, backups: Backups | None = None) -> "Store":
        """Returns the checked and migrated store at `path`, created if missing.

        Args:
            backups: of this database; one is made before a migration. None makes none.

        Raises:
            Misconfigured: it is damaged, newer than this program, missing although it has backups,
                cannot be backed up before a migration, or the folder cannot be written. The message
                says what to do.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            (backups or Backups(path, path.parent)).require_sound()
            store = cls(path)
            if backups is not None and store._is_older():
                backups.make(Kind.MIGRATION)
            store._migrate()
            store.room.take()
            return store
        except BackupFailed as error:
            raise Misconfigured(
                f"the database needs a backup before it is changed: {error}"
            ) from None
        except OSError as error:
            raise Misconfigured(
                f"cannot use the database {path}: {error.strerror}; make the folder writable for "
                "this user, or choose another with --home"
            ) from None
        except (sqlite3.Error, sa.exc.DatabaseError) as error:
            raise Misconfigured(
                f"cannot open the database {path}: {getattr(error, 'orig', None) or error}"
            ) from None

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yields a connection that sees one consistent state."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Yields the only connection that may write, from the first statement on.

        Commits on exit; rolls back on an exception.
        """
        with self._engine.connect() as connection:
            connection = connection.execution_options(lectern_begin="BEGIN IMMEDIATE")
            with connection.begin():
                yield connection

    def try_write(self) -> None:
        """Writes a row and rolls back. Raises SQLAlchemyError if the database cannot be written."""
        with self._engine.connect() as connection:
            connection = connection.execution_options(lectern_begin="BEGIN IMMEDIATE")
            with connection.begin() as transaction:
                connection.execute(sa.insert(deleted_runs).values(run_id="", revision=-1))
                transaction.rollback()

    def schema(self) -> str:
        """Returns the revision of the database's schema: that of the newest migration."""
        with self.reading() as connection:
            revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version")
            return str(revision.scalar_one())

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self) -> None:
        """Brings the schema to the newest version, in one transaction."""
        with self.writing() as connection:
            if _revision(connection) == newest_schema():
                return
            # Only here: it costs 10 MB for as long as the process lives.
            from alembic import command
            from alembic.config import Config
            from alembic.util import CommandError

            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.set_main_option("path_separator", "os")
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise Misconfigured(
                    f"the database {self.path} was made by a newer release of Lectern ({error}); "
                    "use that release"
                ) from None

    def _is_older(self) -> bool:
        """Returns whether it has tables, and not those of the newest schema."""
        with self.reading() as connection:
            return _revision(connection) not in (None, newest_schema())


def _revision(connection: sa.Connection) -> str | None:
    """Returns the revision of the schema there; None if there is no schema yet."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version")
    return found.scalars().first()


@functools.cache
def newest_schema() -> str:
    """Returns the revision of the newest migration."""
    return max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _stored_json(text: Any) -> Any:
    """Returns a stored JSON value, {} for a damaged one: it must not hide the other rows."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000},
        json_deserializer=_stored_json,
        # Callers wait in threads: better told to come back than kept there for half a minute.
        pool_timeout=POOL_TIMEOUT_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # The driver begins no transactions by itself; the "begin" event below does.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        # A transaction that reads and then writes fails at once if another wrote in between, so a
        # writing one takes its lock first.
        statement = connection.get_execution_options().get("lectern_begin", "BEGIN")
        connection.exec_driver_sql(statement)

    return engine
