"""Ends that heal: an interrupted run goes on when what it waits for has come true."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from control_plane.runs.healing import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, MAX_GOES
from control_plane.runs.record import Run, Wanted
from control_plane.runs.store import runs as table
from control_plane.teachers.returned import teacher_obstacle
from control_plane.trainers import obstacles
from control_plane.trainers.healing import Healing
from control_plane.views.run_fields import run_view
from lectern_common.run.status import RunState
from lectern_common.spec.load import parse_spec
from lectern_common.teacher.identity import TeacherIdentity
from tests.control_plane.conftest import Bench, spec_body
from tests.support.fakes import NOBODY, FakeTeacher, serving

ACCEPTED = TeacherIdentity("fake-teacher", "e" * 64)
REASONS = ["teacher_unavailable", "disk_full", "disk_stalled", "data_unavailable"]


class AtOnce(Executor):
    """Makes each call where it is submitted, unless it hangs."""

    hangs = False

    def submit(self, call: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if not self.hangs:
            try:
                future.set_result(call(*given, **named))
            except Exception as error:
                future.set_exception(error)
        return future


class Healer:
    """A bench whose runs heal; `obstacle` is what every look finds."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.obstacle: str | Exception | None = "it is Monday"
        self.looks: list[str] = []
        self.restart()

    def restart(self) -> None:
        self.pool = AtOnce()
        self.healing = Healing(
            self.bench.runs,
            self.bench.commands,
            dict.fromkeys(REASONS, self._look),
            self.bench.clock,
            lambda: self.pool,
        )

    def _look(self, run: Run) -> str | None:
        self.looks.append(run.id)
        if isinstance(self.obstacle, Exception):
            raise self.obstacle
        return self.obstacle

    def tick(self, seconds: float = 0.0) -> None:
        self.bench.tick(seconds)
        self.healing.look()  # starts the looks that are due
        self.healing.look()  # and collects what they found
        self.bench.tick()

    def interrupted(self, reason: str, address: str = NOBODY, **said: Any) -> Run:
        """Returns a run that ended with this reason."""
        body = spec_body(objective={"alpha": 0.3}, teacher={"address": address})
        run = self.bench.commands.create(parse_spec(body), teacher=ACCEPTED)
        self.bench.tick()
        self.end(reason, **said)
        return self.bench.runs.get(run.id)

    def end(self, reason: str, **said: Any) -> None:
        process = self.bench.processes.last()
        process.say("interrupted", reason=reason, message="why", step=3, **said)
        process.end(75)
        self.bench.tick(1)
        self.healing.look()


@pytest.fixture
def healer(bench: Bench) -> Healer:
    return Healer(bench)


@pytest.mark.parametrize("reason", REASONS)
def test_a_run_goes_on_when_what_it_waits_for_has_come_true(healer: Healer, reason: str) -> None:
    run = healer.interrupted(reason)
    assert run.state is RunState.INTERRUPTED and run.resumes_itself and run.resumes_when
    view = run_view(run, healer.bench.clock())
    assert (view.resumes_at, view.resumes_when, view.message) == (None, run.waits_for, "why")
    healer.tick(FIRST_DELAY_SECONDS - 5)
    assert healer.looks == []
    healer.tick(10)
    waiting = healer.bench.runs.get(run.id)
    assert (waiting.state, waiting.resumes_when) == (RunState.INTERRUPTED, "it is Monday")
    healer.obstacle = None
    healer.tick(LONGEST_DELAY_SECONDS)
    gone_on = healer.bench.runs.get(run.id)
    assert (gone_on.state, gone_on.heals, gone_on.restarts) == (RunState.STARTING, 1, 1)
    assert gone_on.waits_for is None
    said = [entry["message"] for entry in healer.bench.runs.history(run.id)]
    assert any(text and text.startswith("resumes by itself: ") for text in said)
    assert healer.bench.processes.resumed == [False, True]


def test_a_run_that_lost_its_processes_goes_on_after_a_delay_that_grows(healer: Healer) -> None:
    run = healer.interrupted("rank_lost")
    delays = []
    for _ in range(3):
        waiting = healer.bench.runs.get(run.id)
        assert waiting.resume_at is not None and waiting.resumes_when is None
        delays.append(waiting.resume_at - waiting.since)
        healer.tick(delays[-1] - 1)
        assert healer.bench.runs.get(run.id).state is RunState.INTERRUPTED
        healer.tick(2)
        healer.end("rank_lost")
    assert delays == [15.0, 30.0, 60.0]


def test_the_delay_between_looks_grows_to_its_limit(healer: Healer) -> None:
    healer.interrupted("teacher_unavailable")
    times = []
    for _ in range(150):
        before = len(healer.looks)
        healer.tick(10)
        if len(healer.looks) > before:
            times.append(healer.bench.clock())
    gaps = [round(later - sooner) for sooner, later in pairwise(times)]
    assert gaps[:5] == [30, 60, 120, 240, 300]


@pytest.mark.parametrize("reason", [*REASONS, "rank_lost"])
def test_a_run_without_progress_goes_on_only_so_often_and_says_so(
    healer: Healer, reason: str
) -> None:
    healer.obstacle = None
    run = healer.interrupted(reason)
    for number in range(MAX_GOES):
        healer.tick(LONGEST_DELAY_SECONDS + 1)
        assert healer.bench.runs.get(run.id).heals == number + 1
        healer.end(reason)
    healer.tick(10 * LONGEST_DELAY_SECONDS)
    stuck = healer.bench.runs.get(run.id)
    assert (stuck.state, stuck.resumes_itself) == (RunState.INTERRUPTED, False)
    assert "waits for you" in str(stuck.message)
    healer.bench.commands.request_resume(run.id)
    healer.tick(1)
    healer.end(reason)
    again = healer.bench.runs.get(run.id)
    assert (again.heals, again.restarts, again.resumes_itself) == (0, 0, True)


def test_a_new_checkpoint_gives_a_run_all_its_goes_again(healer: Healer) -> None:
    healer.obstacle = None
    run = healer.interrupted("disk_full")
    for number in range(2 * MAX_GOES):
        healer.tick(LONGEST_DELAY_SECONDS + 1)
        healer.end("disk_full", checkpoint_step=number + 1)
    found = healer.bench.runs.get(run.id)
    assert (found.heals, found.restarts, found.resumes_itself) == (2 * MAX_GOES, 0, True)


def test_a_stop_ends_the_waiting(healer: Healer) -> None:
    healer.obstacle = None
    run = healer.interrupted("teacher_unavailable")
    stopped = healer.bench.commands.request_stop(run.id)
    assert (stopped.state, stopped.resumes_itself) == (RunState.INTERRUPTED, False)
    assert (stopped.wanted, stopped.reason) == (Wanted.STOPPED, "teacher_unavailable")
    healer.tick(1000)
    assert healer.looks == [] and len(healer.bench.processes.started) == 1


def test_a_stop_during_a_look_wins(healer: Healer) -> None:
    run = healer.interrupted("teacher_unavailable")
    healer.obstacle = None
    healer.bench.clock.advance(20)
    healer.healing.look()  # the look has ended, but is not collected
    healer.bench.commands.request_stop(run.id)
    healer.tick()
    assert healer.looks == [run.id]
    assert healer.bench.runs.get(run.id).state is RunState.INTERRUPTED


def test_a_restarted_control_plane_goes_on_waiting(healer: Healer) -> None:
    run = healer.interrupted("teacher_unavailable")
    healer.tick(20)
    healer.bench.restart()
    healer.restart()
    healer.obstacle = None
    healer.tick(1)
    assert healer.bench.runs.get(run.id).resumes_when == "it is Monday"
    healer.tick(20)
    assert healer.bench.runs.get(run.id).state is RunState.STARTING


def test_looks_that_hang_or_fail_hold_up_nothing(healer: Healer) -> None:
    run = healer.interrupted("teacher_unavailable")
    healer.pool.hangs = True
    healer.tick(20)
    healer.tick(1000)
    healer.restart()
    healer.obstacle = RuntimeError("unexpected")
    healer.tick(1)
    healer.tick(20)
    healer.obstacle = None
    healer.tick(LONGEST_DELAY_SECONDS)
    assert healer.bench.runs.get(run.id).state is RunState.STARTING


def test_a_run_of_an_earlier_release_does_not_go_on_by_itself(healer: Healer) -> None:
    run = healer.interrupted("teacher_unavailable")
    with healer.bench.store.writing() as connection:
        connection.execute(table.update().values(waits_for=None))
    healer.obstacle = None
    healer.tick(1000)
    assert healer.looks == [] and not healer.bench.runs.get(run.id).resumes_itself


# ---- what keeps a run from going on ------------------------------------------------------------


def test_only_the_teacher_that_a_run_was_accepted_with_starts_it(healer: Healer) -> None:
    roots = healer.bench.roots
    with serving(FakeTeacher()) as address:
        run = healer.interrupted("teacher_unavailable", address)
        assert run.teacher == asdict(ACCEPTED)
        assert teacher_obstacle(run, roots, {}) is None
    assert teacher_obstacle(run, roots, {}) == run.waits_for
    assert run.waits_for == f"the teacher at {address} answers again"
    with serving(FakeTeacher(model_id="another", fingerprint="d" * 64)) as address:
        run = healer.interrupted("teacher_unavailable", address)
        found = str(teacher_obstacle(run, roots, {}))
    assert found == (
        f"the teacher at {address} is fake-teacher (fingerprint {'e' * 12}) again; "
        f"now it is another (fingerprint {'d' * 12})"
    )


def test_a_run_waits_for_room_for_its_next_checkpoint(
    healer: Healer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from control_plane import disk_space

    run = healer.interrupted("disk_full", checkpoint_step=3)
    folder = healer.bench.roots.runs / run.id / "checkpoints" / "step-00000003"
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(100 << 20)
    size = sum(path.stat().st_size for path in folder.iterdir())
    needed = int(1.1 * size) + disk_space.MARGIN_BYTES
    for free, low in ((needed - 1, True), (needed, False)):
        usage = type("Usage", (), {"total": 1 << 40, "free": free})
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        found = obstacles.disk_obstacle(run, healer.bench.roots)
        assert (found is not None) == low
        if low:
            assert found == "its disk has 149 MB free; now 149 MB"

    def full(_folder: Path) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(obstacles, "_write_probe", full)
    assert "quota" in str(obstacles.disk_obstacle(run, healer.bench.roots))


def test_the_disk_is_low_before_the_active_runs_find_it_full(client, plane, monkeypatch) -> None:
    from control_plane import disk_space

    answer = client.get("/disk").json()
    assert answer["needed_bytes"] == disk_space.MARGIN_BYTES and answer["low"] is False
    usage = type("Usage", (), {"total": 1 << 40, "free": disk_space.MARGIN_BYTES - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert client.get("/disk").json()["low"] is True
