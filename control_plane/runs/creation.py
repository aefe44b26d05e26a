"""Makes the rows of new runs within a transaction: ids, columns, places in the queue, history."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from control_plane.runs.callers import caller
from control_plane.runs.record import FORKED, PRIORITY, Run, Wanted, newest_revision, select_runs
from control_plane.runs.store import history, idempotency_keys, runs
from lectern_common.run.folder import ForkedFrom
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.identity import TeacherIdentity

_MAX_NAME_IN_ID = 56  # with "-" and the suffix, an id has at most 63 characters
_SUFFIX_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


@dataclass(frozen=True)
class Fork:
    """What makes a new run a fork.

    Attributes:
        source: the checkpoint that it begins with.
        place: puts its folder where a run with the given id expects it; called before the row can
            be seen.
    """

    source: ForkedFrom
    place: Callable[[str], None]


def insert_runs(
    connection: sa.Connection,
    wanted: Sequence[tuple[RunSpec, TeacherIdentity | None]],
    id_taken: Callable[[str], bool],
    now: float,
    fork: Fork | None = None,
) -> list[Run]:
    """Returns new queued runs, made within a transaction; call `RunCommands.inserted` after it.

    The loop gives them their places in the queue.

    Args:
        connection: of the transaction.
        wanted: spec and teacher of each.
        id_taken: as in `RunCommands.create`.
        now: Unix seconds.
        fork: what each begins with; None means with nothing.
    """
    new: set[str] = set()

    def is_taken(run_id: str) -> bool:
        is_used = id_taken(run_id) or run_id in new
        return is_used or select_runs(connection, runs.c.id == run_id) != []

    rows = []
    revision = newest_revision(connection)
    for spec, teacher in wanted:
        run_id = new_id(spec.name, is_taken)
        new.add(run_id)
        revision += 1
        row = {**_new_row(run_id, spec, teacher, now), "revision": revision}
        if fork is not None:
            fork.place(run_id)
            row |= {"forked_from": asdict(fork.source), "reason": FORKED}
            row["message"] = f"forked from {fork.source}"
        rows.append(row)
    connection.execute(sa.insert(runs), rows)
    made = select_runs(connection, runs.c.revision > revision - len(rows))
    for run in made:
        remember(connection, run, now)
    return made


def new_id(name: str, is_taken: Callable[[str], bool]) -> str:
    """Returns the name with a random suffix that no other has."""
    while True:
        suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(6))
        found = f"{name[:_MAX_NAME_IN_ID].rstrip('-')}-{suffix}"
        if not is_taken(found):
            return found


def set_place(connection: sa.Connection, run_id: str) -> None:
    """Sets a queued run's place: behind those before it. The loop moves the others."""
    priority, seq = connection.execute(
        sa.select(PRIORITY, runs.c.seq).where(runs.c.id == run_id)
    ).one()
    is_before = sa.or_(priority < PRIORITY, sa.and_(priority == PRIORITY, runs.c.seq < seq))
    before = sa.select(sa.func.count()).where(runs.c.state == RunState.QUEUED, is_before)
    place = connection.execute(before).scalar_one() + 1
    connection.execute(sa.update(runs).where(runs.c.id == run_id).values(queue_position=place))


def remember(connection: sa.Connection, run: Run, now: float) -> None:
    """Adds an entry to the run's history: its present state, and who asked for it."""
    connection.execute(
        sa.insert(history).values(
            run_id=run.id,
            at=now,
            attempt=run.attempt,
            wanted=run.wanted,
            state=run.state,
            reason=run.reason,
            message=run.message,
            by=caller(),
        )
    )


def remember_key(
    connection: sa.Connection, key: str | None, request_sha256: str, made: str, now: float
) -> None:
    """Notes which run or task a client's key made; None is no key."""
    if key is not None:
        values = {"key": key, "request_sha256": request_sha256, "run_id": made, "created_at": now}
        connection.execute(sa.insert(idempotency_keys).values(values))


def _new_row(
    run_id: str, spec: RunSpec, teacher: TeacherIdentity | None, now: float
) -> dict[str, Any]:
    return {
        "id": run_id,
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "teacher": None if teacher is None else asdict(teacher),
        "created_at": now,
        "wanted": Wanted.RUNNING,
        "state": RunState.QUEUED,
        "since": now,
        "attempt": 0,
        "restarts": 0,
        "active_seconds": 0.0,
    }
