"""Switches off the protection of each control-plane row; see faults/teacher/sabotage.py."""

import os
from collections.abc import Callable
from typing import Any

from faults.replacing import put


def _only_own_children_are_alive(program: str) -> None:
    if program == "control":
        from control_plane.trainers.launching.processes import LocalProcesses

        def is_child(self: LocalProcesses, process: Any) -> bool:
            child = self._children.get(process.pid)
            return child is not None and child.poll() is None

        put(LocalProcesses, "is_alive", is_child)


def _interrupted_runs_stay_so(program: str) -> None:
    if program == "control":
        from control_plane.trainers.reconciler import Reconciler

        def nothing(_self: Reconciler) -> None:
            return

        put(Reconciler, "_requeue_interrupted", nothing)


def _trainers_are_not_looked_for(program: str) -> None:
    if program == "control":
        from control_plane.trainers.launching.processes import LocalProcesses

        def none(*_: object) -> None:
            return None

        put(LocalProcesses, "find", none)


def _a_pid_is_enough(program: str) -> None:
    if program == "control":
        import psutil

        from control_plane.trainers.launching.processes import LocalProcesses

        def is_there(_self: LocalProcesses, process: Any) -> bool:
            return psutil.pid_exists(process.pid)

        put(LocalProcesses, "is_alive", is_there)


def _keys_are_not_remembered(program: str) -> None:
    if program == "control":
        from control_plane.runs import commands, queries

        def none(*_: object) -> None:
            return None

        put(queries, "run_made_by_key", none)
        put(commands, "run_made_by_key", none)


def _any_state_resumes(program: str) -> None:
    if program == "control":
        from control_plane.api.routes import steering
        from control_plane.runs import decisions

        def trusting(*_: object) -> None:
            return

        put(steering, "require_goes_on", trusting)
        put(decisions, "require_goes_on", trusting)


def _only_the_leader_is_killed(program: str) -> None:
    if program == "control":
        import contextlib
        import signal

        from control_plane.trainers.launching.processes import LocalProcesses

        def kill(self: LocalProcesses, process: Any) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            self.forget(process)

        put(LocalProcesses, "kill", kill)


def _database_errors_are_bugs(program: str) -> None:
    if program == "control":
        import sqlalchemy as sa

        from control_plane.api import app, problems

        handle = problems.handle_problems

        def without(made: Any) -> None:
            handle(made)
            del made.exception_handlers[sa.exc.DBAPIError]

        put(app, "handle_problems", without)


def _any_database_is_opened(program: str) -> None:
    if program == "control":
        from control_plane.runs.keeping.backups import Backups

        def trusting(*_: object) -> None:
            return

        put(Backups, "require_sound", trusting)


def _migrations_commit_each_statement(program: str) -> None:
    if program == "control":
        import sqlalchemy as sa
        from alembic import command

        upgrade = command.upgrade

        def in_pieces(config: Any, revision: str) -> None:
            connection = config.attributes["connection"]

            @sa.event.listens_for(connection, "after_cursor_execute")
            def _commit(one: Any, _cursor: Any, statement: str, *_: Any) -> None:
                if not statement.startswith(("SELECT", "PRAGMA", "BEGIN")):
                    raw = one.connection.dbapi_connection
                    raw.execute("COMMIT")
                    raw.execute("BEGIN IMMEDIATE")

            upgrade(config, revision)

        put(command, "upgrade", in_pieces)


def _last_event_ids_are_ignored(program: str) -> None:
    if program == "control":
        from control_plane.reading.streams import RunPosition

        def start(_text: str) -> RunPosition:
            return RunPosition()

        put(RunPosition, "parse", start)


def _everyone_may_pass(program: str) -> None:
    if program == "control":
        from control_plane.api.guard import Guard

        def passes(*_: object) -> None:
            return None

        put(Guard, "_token_refusal", passes)


def _bodies_of_any_size(program: str) -> None:
    if program == "control":
        from control_plane.api import guard

        put(guard, "MAX_BODY_BYTES", 1 << 62)


def _paths_lead_anywhere(program: str) -> None:
    if program == "control":
        from lectern_common.checks import documents, preflight, student
        from lectern_common.teacher import secrets

        def joined(root: Any, relative: str, field: str) -> Any:
            return (root / relative).resolve()

        for module in (documents, preflight, student, secrets):
            put(module, "resolve_under", joined)


def _origins_are_not_compared(program: str) -> None:
    if program == "control":
        from control_plane.api import guard

        def trusting(*_: object) -> bool:
            return True

        put(guard, "_is_same_origin", trusting)


def _lines_are_shown_as_they_are(program: str) -> None:
    if program == "control":
        from control_plane.reading.logs import tail

        put(tail, "inert_line", str)


def _start_errors_are_bugs(program: str) -> None:
    if program == "control":
        from lectern_common import listening

        bound = listening.bound_sockets

        def unhandled(host: str, port: int) -> Any:
            try:
                return bound(host, port)
            except OSError as error:
                raise RuntimeError(str(error)) from error

        put(listening, "bound_sockets", unhandled)


def _unseen_is_gone(program: str) -> None:
    if program == "control":
        from control_plane.trainers.launching.seam import Seen, Sight
        from control_plane.trainers.reconciler import Reconciler

        sight_of = Reconciler._sight_of

        def gone(self: Reconciler, *arguments: Any) -> Any:
            try:
                return sight_of(self, *arguments)
            except OSError:
                return None, Seen(Sight.GONE)

        put(Reconciler, "_sight_of", gone)


def _logs_stay_open(program: str) -> None:
    if program == "control":
        from control_plane.trainers.launching.processes import LocalProcesses

        start = LocalProcesses.start

        def leaking(self: LocalProcesses, folder: Any, **named: Any) -> Any:
            kept.append(folder.log_path.open("ab"))
            return start(self, folder, **named)

        kept: list[Any] = []
        put(LocalProcesses, "start", leaking)


def _the_list_reads_every_run(program: str) -> None:
    if program == "control":
        from control_plane.runs.queries import Runs
        from lectern_common.run.status import RunState

        search = Runs.search

        def of_all(self: Runs, *arguments: Any) -> Any:
            for run in self.in_states([*RunState]):
                _ = run.run_spec
            return search(self, *arguments)

        put(Runs, "search", of_all)


def _trainers_inherit_everything(program: str) -> None:
    if program == "control":
        from control_plane.trainers.launching.processes import LocalProcesses

        start = LocalProcesses.start

        def started(self: LocalProcesses, folder: Any, *, environment: Any, **named: Any) -> Any:
            return start(self, folder, environment={**os.environ, **environment}, **named)

        put(LocalProcesses, "start", started)


def _other_versions_are_unreadable(program: str) -> None:
    if program == "control":
        import json

        from lectern_common.run.folder import RunFolder
        from lectern_common.run.status import STATUS_VERSION

        read = RunFolder.read_status

        def of_this_version(self: RunFolder) -> Any:
            status = read(self)
            version = status and json.loads(self.status_path.read_bytes())["version"]
            return status if version == STATUS_VERSION else None

        put(RunFolder, "read_status", of_this_version)


def _processes_are_known_by_the_wall_clock(program: str) -> None:
    if program == "control":
        import psutil

        from control_plane.trainers.launching.processes import LocalProcesses

        is_alive = LocalProcesses.is_alive
        created: dict[int, float] = {}

        def has_its_time(self: LocalProcesses, process: Any) -> bool:
            if not is_alive(self, process):
                return False
            now = psutil.Process(process.pid).create_time()
            return abs(now - created.setdefault(process.pid, now)) < 2

        put(LocalProcesses, "is_alive", has_its_time)


def _statuses_are_believed(program: str) -> None:
    if program == "control":
        import json

        from lectern_common.run.folder import RunFolder
        from lectern_common.run.status import RunState, Status

        def believed(self: RunFolder) -> Any:
            try:
                values = json.loads(self.status_path.read_bytes())
            except FileNotFoundError:
                return None
            return Status(**{**values, "state": RunState(values["state"])})

        put(RunFolder, "read_status", believed)


def _progress_is_not_watched(program: str) -> None:
    if program == "control":
        from control_plane.trainers.conditions import Conditions

        def never(*_: object) -> None:
            return None

        put(Conditions, "_stalled_since", never)


def _the_disk_is_not_watched(program: str) -> None:
    if program == "control":
        from control_plane import disk_space

        def nothing(*_: object) -> None:
            return

        put(disk_space, "_warning", nothing)


def _any_number_of_connections(program: str) -> None:
    if program == "control":
        from control_plane.api import connections
        from lectern_common import http_server

        def unbounded(_descriptors: int) -> int:
            return 1 << 30

        put(connections, "max_connections", unbounded)
        put(http_server, "REQUEST_SECONDS", float("inf"))


def _ends_wait_for_a_person(program: str) -> None:
    if program == "control":
        from control_plane.trainers.healing import Healing

        def nothing(_self: Healing) -> None:
            return

        put(Healing, "look", nothing)


ROWS: dict[str, Callable[[str], None]] = {
    "C1": _only_own_children_are_alive,
    "C2": _interrupted_runs_stay_so,
    "C3": _trainers_are_not_looked_for,
    "C4": _a_pid_is_enough,
    "C5": _keys_are_not_remembered,
    "C6": _any_state_resumes,
    "C7": _only_the_leader_is_killed,
    "C8": _database_errors_are_bugs,
    "C9": _any_database_is_opened,
    "C10": _migrations_commit_each_statement,
    "C11": _the_list_reads_every_run,
    "C12": _last_event_ids_are_ignored,
    "C13": _everyone_may_pass,
    "C14": _bodies_of_any_size,
    "C15": _paths_lead_anywhere,
    "C16": _origins_are_not_compared,
    "C17": _lines_are_shown_as_they_are,
    "C18": _trainers_inherit_everything,
    "C19": _start_errors_are_bugs,
    "C20": _unseen_is_gone,
    "C21": _other_versions_are_unreadable,
    "C22": _logs_stay_open,
    "C23": _processes_are_known_by_the_wall_clock,
    "C24": _statuses_are_believed,
    "C25": _progress_is_not_watched,
    "C26": _the_disk_is_not_watched,
    "C27": _any_number_of_connections,
    "C28": _ends_wait_for_a_person,
}
