"""C8 to C10: databases that are locked, full, read-only or damaged, and migrations cut short."""

import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from alembic import command
from alembic.config import Config

from faults.control.plane import (
    Plane,
    body_of,
    database,
    end_trainers,
    gaps,
    last_step,
    new_home,
    plane,
)
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import Home

C9_SECONDS = 5.0
_NAME = "control-plane.sqlite3"
_AILING_SECONDS = 2.0


def ailing(stage: Stage) -> Tally:
    """C8: a database that is locked, read-only, full, or on a disk that fails, for a while."""
    tally = Tally()
    home, said = new_home(stage), stage.new_folder() / "said"
    with plane(stage, home, "--max-running-runs", "8", faults=(f"database={said}",)) as service:
        run_id = service.create("steady")
        service.wait_for_state(run_id, "running")
        for _ in range(stage.tries(3, 1)):
            for kind, begin in _AILMENTS.items():
                stage.say(kind)
                end = begin(service, said)
                try:
                    problem = _problem_while_ailing(service, run_id)
                finally:
                    end()
                tally.count(not problem, f"{kind}: {problem}")
                healed = service.create("steady", 5)
                run = service.wait_for_state(healed, "succeeded", "failed")
                tally.count(run["state"] == "succeeded", f"after {kind}: {run['message']}")
        service.post(f"/runs/{run_id}/stop")
        run = service.wait_for_state(run_id, "stopped", "failed", "interrupted")
        problem = gaps(service.folder(run_id).metrics_path, run["step"])
        right = run["state"] == "stopped" and run["attempt"] == 1
        tally.require(right and not problem, f"{problem or run['message']}")
    tally.figure = (
        f"{', '.join(_AILMENTS)}: 503 with Retry-After, the run trained on, and everything worked "
        "again by itself"
    )
    return tally


def _problem_while_ailing(service: Plane, run_id: str) -> str:
    """Returns "" if requests are refused politely for a while, and the run trains on."""
    begun = last_step(service.folder(run_id).metrics_path)
    end, refused = time.monotonic() + _AILING_SECONDS, False
    while time.monotonic() < end:
        answer = service.client.post("/runs", json=body_of("steady", 5))
        # In a full one there may still be room for some.
        if answer.status_code == 202 and not refused:
            continue
        refused = True
        if answer.status_code != 503 or "retry-after" not in answer.headers:
            return f"POST /runs: {answer.status_code} {answer.text[:200]}"
        read = service.client.get(f"/runs/{run_id}").status_code
        if read not in (200, 503) or service.client.get("/healthz").status_code != 200:
            return f"it is not alive; GET of the run: {read}"
    made = last_step(service.folder(run_id).metrics_path) - begun
    if not refused:
        return "nothing was refused"
    return "" if made > 10 else f"the run made {made} steps meanwhile"


def _locked(service: Plane, _said: Path) -> Callable[[], None]:
    connection = sqlite3.connect(service.database, timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection.close


def _told(word: str) -> Callable[[Plane, Path], Callable[[], None]]:
    def begin(_service: Plane, said: Path) -> Callable[[], None]:
        said.write_text(word)
        return said.unlink

    return begin


def _failing_disk(service: Plane, _said: Path) -> Callable[[], None]:
    """No file of the control plane may grow: writes fail, as on a broken disk."""
    process = psutil.Process(service.pid)
    _, most = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (0, most))

    def end() -> None:
        process.rlimit(psutil.RLIMIT_FSIZE, (most, most))

    return end


_AILMENTS: dict[str, Callable[[Plane, Path], Callable[[], None]]] = {
    "locked": _locked,
    "read-only": _told("read-only"),
    "full": _told("full"),
    "a failing disk": _failing_disk,
}


def damaged(stage: Stage) -> Tally:
    """C9: a database damaged, cut, emptied or gone at the start; then restored as advised."""
    tally, slowest = Tally(), 0.0
    for kind, damage in _DAMAGE.items():
        stage.say(kind)
        home = new_home(stage)
        runs = _with_a_backup(stage, home)
        path = home.roots.runs / _NAME
        damage(path)
        before = path.read_bytes() if path.exists() else None
        begun = time.monotonic()
        refused = Plane(stage, home)
        try:
            status = refused.wait(60)
        finally:
            refused.kill()
            end_trainers(home)
        slowest = max(slowest, time.monotonic() - begun)
        lines = refused.log.splitlines()
        after = path.read_bytes() if path.exists() else None
        commands = re.search(rf"rm -f [^;]+; cp \S+ {re.escape(str(path))}", " ".join(lines))
        said = status == 2 and len(lines) == 1 and "lectern runs adopt" in lines[0]
        said = said and commands is not None
        tally.count(said, f"{kind}: exit status {status}, {lines[:2]}")
        tally.count(after == before, f"{kind}: the database was changed")
        if commands is not None:
            subprocess.run(["/bin/sh", "-c", commands[0]], check=True)
        try:
            with plane(stage, home) as restored:
                found = {run["id"] for run in restored.runs()}
        except RuntimeError as error:  # it does not start
            tally.count(False, f"{kind}: not restored: {error}")
            continue
        tally.count(found == runs, f"{kind}: restored, it has {len(found)} of {len(runs)} runs")
    tally.require_within(slowest, C9_SECONDS, "refusing")
    tally.figure = (
        f"{', '.join(_DAMAGE)}: refused within {slowest:.1f} s in one line that says how to "
        "restore the backup, which then has every run"
    )
    return tally


def _with_a_backup(stage: Stage, home: Home) -> set[str]:
    """Returns the runs of a database that has been backed up with them."""
    with plane(stage, home) as first:
        runs = {first.create("steady", 3) for _ in range(5)}
        for run_id in runs:
            first.wait_for_state(run_id, "succeeded")
        first.stop()
    with plane(stage, home) as second:
        second.stop()
    return runs


def _overwritten(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(4096, len(data) - 1024, 4096):
        data[place : place + 1024] = b"\xa5" * 1024
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_its_header(path: Path) -> None:
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])


def _text(path: Path) -> None:
    path.write_text(json.dumps({"this is": "no database"}) * 100)


_DAMAGE: dict[str, Callable[[Path], object]] = {
    "pages overwritten": _overwritten,
    "cut in half": _cut,
    "without its header": _without_its_header,
    "another kind of file": _text,
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


def half_migrated(stage: Stage) -> Tally:
    """C10: kills migrations before each of their statements, from every older schema."""
    tally = Tally()
    starts = [None, *_revisions()[:-1]]
    for revision in starts[-1:] if stage.quick else starts:
        number = 1
        while True:
            stage.say(f"from schema {revision}, statement {number}")
            home = new_home(stage)
            runs = _of_schema(home, revision)
            dying = Plane(stage, home, faults=(f"die-at=statement:{number}",))
            try:
                dying_status = 0 if dying.wait_until_up() else dying.wait()
            finally:
                dying.kill()
            if dying_status != -9:
                tally.require(
                    dying_status == 0, f"it exited with {dying_status}: {dying.log[-300:]}"
                )
                break
            problem = _problem_of_next_start(stage, home, runs)
            tally.count(not problem, f"from {revision}, killed at statement {number}: {problem}")
            number += 1
    tally.figure = "the next start completed each migration, with every run"
    return tally


def _config() -> Config:
    import control_plane

    config = Config()
    folder = Path(control_plane.__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    return config


def _revisions() -> list[str]:
    """Returns the schemas, oldest first."""
    from alembic.script import ScriptDirectory

    found = ScriptDirectory.from_config(_config()).walk_revisions()
    return [script.revision for script in found][::-1]


def _of_schema(home: Home, revision: str | None) -> set[str]:
    """Makes a database of an older schema with a run that has succeeded; returns its runs."""
    import sqlalchemy as sa

    from lectern_common.spec.load import parse_spec

    home.roots.runs.mkdir()
    if revision is None:
        return set()
    path, config = home.roots.runs / _NAME, _config()
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()
    spec = json.dumps(parse_spec(body_of()).model_dump(mode="json"))
    with database(path) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute(
            "INSERT INTO runs (id, name, spec, created_at, wanted, state, since, revision, attempt,"
            " restarts, active_seconds) VALUES ('old-aaaaaa', 'old', ?, 1, 'running', 'succeeded',"
            " 1, 1, 1, 0, 1)",
            (spec,),
        )
    return {"old-aaaaaa"}


def _problem_of_next_start(stage: Stage, home: Home, runs: set[str]) -> str:
    try:
        with plane(stage, home) as second:
            found = {run["id"] for run in second.runs()}
            if found != runs:
                return f"it has the runs {sorted(found)}"
            run = second.wait_for_state(second.create("steady", 3), "succeeded", "failed")
            return "" if run["state"] == "succeeded" else f"a new run: {run['message']}"
    except RuntimeError as error:
        return str(error)[-300:]
