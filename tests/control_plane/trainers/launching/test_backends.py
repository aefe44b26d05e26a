"""The reconcile loop over a backend that does not answer, and one that lets runs wait."""

import sqlite3

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from control_plane.runs.store import DATABASE_NAME
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.seam import Seen, Sight
from control_plane.trainers.reconciler import STOP_GRACE_SECONDS
from control_plane.views.run_fields import run_view
from lectern_common.errors import BackendDown, LaunchRefused
from lectern_common.run.processes import Handle, Identity
from lectern_common.run.status import RunState
from tests.control_plane.runs.test_store import MIGRATIONS


class Site(LocalLauncher):
    """A scheduler with a queue of its own, which may be away."""

    has_own_queue = True
    away = False
    waits = ""
    refuses = ""

    def _answer(self):
        if self.away:
            raise BackendDown("the scheduler does not answer")

    def start(self, folder, **asked):
        self._answer()
        if self.refuses:
            raise LaunchRefused(self.refuses)
        return super().start(folder, **asked)

    def find(self, *asked):
        self._answer()
        return super().find(*asked)

    def look(self, handle):
        if self.away:
            return Seen(Sight.UNKNOWN, "the scheduler does not answer")
        if self.waits:
            return Seen(Sight.WAITING, self.waits)
        return super().look(handle)

    def terminate(self, handle):
        self._answer()
        super().terminate(handle)

    def kill(self, handle):
        self._answer()
        super().kill(handle)


@pytest.fixture
def site(bench):
    site = Site(bench.processes)
    bench.reconciler._launcher = site
    return site


def test_a_backend_that_is_away_changes_nothing_but_what_is_stale(bench, site):
    run = bench.started()
    site.away = True
    bench.tick(1)
    bench.tick(3600)
    after = bench.runs.get(run.id)
    assert (after.state, after.attempt, after.handle) == (RunState.RUNNING, 1, run.handle)
    assert after.stale_since is not None and after.stalled_since is None
    assert bench.reconciler.away == "the scheduler does not answer"
    site.away = False
    bench.processes.last().say("running", step=9)
    bench.tick(1)
    assert bench.reconciler.away is None
    assert (bench.runs.get(run.id).last_status.step, len(bench.processes.started)) == (9, 1)


def test_a_run_whose_backend_is_away_at_its_start_starts_once_it_is_back(bench, site):
    site.away = True
    run = bench.create()
    bench.tick(1)
    bench.tick(60)
    assert (bench.runs.get(run.id).state, bench.processes.started) == (RunState.STARTING, [])
    site.away = False
    bench.tick(1)
    bench.tick(1)
    assert (bench.runs.get(run.id).attempt, len(bench.processes.started)) == (1, 1)


def test_a_signal_that_an_outage_swallowed_is_sent_again_and_no_grace_passes_meanwhile(bench, site):
    run = bench.started()
    process = bench.processes.last()
    site.away = True
    bench.commands.request_stop(run.id)
    bench.tick(1)
    bench.tick(10 * STOP_GRACE_SECONDS)
    site.away = False
    for _ in range(3):
        bench.tick(4)
    assert (process.terminated, process.killed) == (1, False)


def test_a_run_that_waits_at_its_backend_says_why_and_is_not_stalled(bench, site):
    site.waits = "Resources"
    run = bench.create()
    for _ in range(3):
        bench.tick(3600)
    waiting = bench.runs.get(run.id)
    assert (waiting.state, waiting.waits_for) == (RunState.STARTING, "Resources")
    assert run_view(waiting, 0.0).message == "Resources"
    assert waiting.stalled_since is None
    site.waits = ""
    bench.processes.last().say("running", step=1)
    bench.tick(1)
    started = bench.runs.get(run.id)
    assert (started.state, started.waits_for) == (RunState.RUNNING, None)


def test_a_run_that_is_stopped_while_it_waits_is_cancelled_at_once(bench, site):
    site.waits = "Priority"
    run = bench.create()
    bench.tick(1)
    bench.tick(1)
    bench.commands.request_stop(run.id)
    bench.tick(1)
    assert bench.runs.get(run.id).state is RunState.STOPPED
    assert bench.processes.last().killed


def test_a_site_places_more_runs_than_there_are_devices_here(bench, site):
    for number in range(5):
        bench.create(f"run-{number}")
    bench.tick(1)
    assert len(bench.processes.started) == 5


def test_a_launch_that_the_backend_refuses_fails_with_its_words(bench, site):
    site.refuses = "invalid partition specified: gpu"
    run = bench.create()
    bench.tick(1)
    failed = bench.runs.get(run.id)
    assert (failed.state, failed.reason, failed.message) == (
        RunState.FAILED,
        "launch_failed",
        site.refuses,
    )


def test_a_handle_is_one_text_of_its_backend_and_its_id():
    process = Identity(7, "boot", 4242)
    handle = Handle.of_process(process)
    assert (str(handle), handle.process, handle.pid) == ("local:7/4242/boot", process, 7)
    assert Handle.of("slurm:12:3") == Handle("slurm", "12:3")
    assert (Handle("slurm", "12").process, Handle("slurm", "12").pid) == (None, None)
    assert [Handle.of(text) for text in (None, "", "7", "local:")] == [None] * 4


def test_the_process_of_a_row_of_an_earlier_release_becomes_its_handle(tmp_path):
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with sqlite3.connect(tmp_path / DATABASE_NAME) as connection:
        engine = sa.create_engine("sqlite://", creator=lambda: connection)
        with engine.begin() as config.attributes["connection"]:
            command.upgrade(config, "0013")
        rows = [(1, "new", 7, "boot", 9), (2, "old", 8, None, None), (3, "none", None, None, None)]
        for row in rows:
            connection.execute(
                "INSERT INTO runs (seq, id, pid, boot_id, start_ticks, name, spec, created_at,"
                " wanted, state, since, revision, attempt, restarts, active_seconds)"
                " VALUES (?,?,?,?,?,'x','{}',0,'running','running',0,?,1,0,0)",
                (*row, row[0]),
            )
        with engine.begin() as config.attributes["connection"]:
            command.upgrade(config, "head")
        found = dict(connection.execute("SELECT id, handle FROM runs").fetchall())
    assert found == {"new": "local:7/9/boot", "old": "local:8", "none": None}
