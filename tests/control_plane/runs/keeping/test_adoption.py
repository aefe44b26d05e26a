"""Rows come back from run folders, and an older database learns how its runs went on."""

import json
import os
import shutil
from pathlib import Path

import pytest

from control_plane.plane import open_plane
from control_plane.runs.commands import RunCommands
from control_plane.runs.keeping.adoption import Adopted, Adoption
from control_plane.runs.keeping.backups import Backups, Kind
from control_plane.runs.keeping.deletion import delete_run, finish_deletions
from control_plane.runs.queries import Runs
from control_plane.runs.record import Run, Wanted
from control_plane.runs.search import Search
from control_plane.runs.store import DATABASE_NAME, Store
from control_plane.trainers.launching.local import LocalLauncher
from control_plane.trainers.launching.processes import LocalProcesses
from control_plane.trainers.reconciler import Reconciler
from lectern_common.run.folder import RunFolder
from lectern_common.run.processes import identity_of
from lectern_common.run.status import RunState
from lectern_common.teacher.identity import TeacherIdentity
from tests.control_plane.api.test_routes import problem_of
from tests.control_plane.api.test_routes import stopped as stopped_over_rest
from tests.control_plane.conftest import Bench, spec


def lose_database(bench: Bench) -> None:
    """Leaves the bench with an empty database, beside the same folders and trainers."""
    bench.store.close()
    for path in bench.roots.runs.glob(f"{DATABASE_NAME}*"):
        path.unlink()
    reopen(bench)


def reopen(bench: Bench) -> None:
    bench.store = Store.open(bench.roots.runs / DATABASE_NAME)
    bench.runs = Runs(bench.store)
    bench.commands = RunCommands(bench.store, bench.clock)
    bench.restart()


def adoption_of(bench: Bench, cuda: tuple[str, ...] = ()) -> Adoption:
    return Adoption(
        bench.runs, bench.commands, bench.roots.runs, LocalLauncher(bench.processes).find, cuda
    )


def adopt(bench: Bench, *run_ids: str) -> Adopted:
    return adoption_of(bench).adopt(run_ids or None)


def ended(bench: Bench, state: str, step: int = 7, **said) -> Run:
    run = bench.started()
    if state == "stopped":
        bench.commands.request_stop(run.id)
    bench.processes.last(run.id).say(state, step=step, checkpoint_step=step, **said)
    bench.processes.last(run.id).end(0)
    bench.tick()
    return bench.runs.get(run.id)


@pytest.mark.parametrize("state", ["stopped", "succeeded", "failed", "interrupted"])
def test_a_run_at_rest_is_as_its_status_says(bench, state):
    before = ended(bench, state, reason="diverged" if state == "failed" else None)
    folder = RunFolder(bench.roots.runs / before.id)
    folder.write_teacher(TeacherIdentity("teacher", "f" * 64))
    lose_database(bench)
    [run] = adopt(bench).runs
    assert (run.id, run.name, run.spec) == (before.id, before.name, before.spec)
    assert (run.state, run.attempt) == (state, 1)
    assert (run.reason, run.message) == (before.reason if state == "failed" else None, None)
    assert run.checkpoint_step == 7 and run.taught_by == TeacherIdentity("teacher", "f" * 64)
    assert not run.resumes_itself
    if run.resumable:
        bench.commands.request_resume(run.id)
        bench.tick()
        assert bench.processes.resumed[-1] is True
        assert bench.processes.last(run.id).attempt == 2
    assert adopt(bench).runs == [] and adopt(bench, run.id).refused == []


def test_a_living_trainer_is_adopted_with_its_process_and_goes_on(bench):
    run = bench.started()
    process = bench.processes.last(run.id)
    process.say("running", step=30, device="cpu")
    lose_database(bench)
    [again] = adopt(bench).runs
    assert (again.state, again.wanted) == (RunState.RUNNING, Wanted.RUNNING)
    assert (again.process, again.slots) == (process.identity, ["cpu"])
    process.say("running", step=31)
    bench.tick(1)
    assert bench.runs.get(run.id).last_status.step == 31
    assert len(bench.processes.started) == 1
    bench.commands.request_stop(run.id)
    bench.tick(1)
    assert process.terminated == 1


def test_an_active_status_without_a_process_is_an_interrupted_run(bench):
    run = bench.started()
    bench.processes.last(run.id).say("running", step=30, checkpoint_step=20)
    bench.processes.last(run.id).end(-9)
    lose_database(bench)
    [again] = adopt(bench).runs
    assert (again.state, again.reason) == (RunState.INTERRUPTED, "killed")
    assert "its last word was running at step 30" in str(again.message)
    assert again.resumable and not again.resumes_itself


def test_a_status_of_version_1_and_a_run_without_a_status(bench):
    first, second = ended(bench, "succeeded"), bench.create()
    folder = RunFolder(bench.roots.runs / first.id)
    values = json.loads(folder.status_path.read_text())
    old = {key: values[key] for key in ("run_id", "state", "since", "heartbeat", "pid", "step")}
    folder.status_path.write_text(json.dumps({**old, "version": 1, "process_create_time": 12.5}))
    RunFolder.create(bench.roots.runs, second.id, spec())
    lose_database(bench)
    found = {run.id: run for run in adopt(bench).runs}
    assert found[first.id].state is RunState.SUCCEEDED and found[first.id].attempt == 0
    assert found[second.id].state is RunState.STOPPED
    assert "no trainer has written in it yet" in str(found[second.id].message)
    bench.commands.request_resume(second.id)
    bench.tick()
    assert bench.processes.resumed[-1] is False


def test_a_folder_that_another_programs_process_holds_is_refused(bench):
    run = ended(bench, "stopped")
    lose_database(bench)
    folder = RunFolder(bench.roots.runs / run.id)
    with folder.locked():
        found = adopt(bench)
    assert (
        found.runs == [] and "is locked by a process that is not a trainer" in found.refused[0][1]
    )
    assert [one.id for one in adopt(bench).runs] == [run.id]


def as_it_lies(path: Path) -> dict[Path, tuple[int, ...]]:
    entries = {found: found.lstat() for found in path.rglob("*")}
    return {
        found: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for found, stat in entries.items()
    }


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def broken(how: str, path: Path) -> None:
    damage = {
        "no spec": lambda: (path / "spec.yaml").unlink(),
        "a spec of another kind": lambda: (path / "spec.yaml").write_text("name: [1, 2"),
        "an unknown field": lambda: (path / "spec.yaml").write_text("name: a\nwrong: 1\n"),
        "a pipe": lambda: pipe(path / "spec.yaml"),
        "half a status": lambda: (path / "status.json").write_text('{"run_id": "a'),
        "a status of a later version": lambda: (path / "status.json").write_text('{"version": 9}'),
        "a status of wrong types": lambda: (path / "status.json").write_text(
            (path / "status.json").read_text().replace('"step": 7', '"step": "x"')
        ),
        "a status of 2 MB": lambda: (path / "status.json").write_text(" " * (2 << 20)),
        "a teacher of wrong types": lambda: (path / "teacher.json").write_text(
            '{"model_id": 3, "fingerprint": []}'
        ),
        "a list as teacher": lambda: (path / "teacher.json").write_text("[1]"),
    }
    damage[how]()


@pytest.mark.parametrize(
    "how",
    [
        *("no spec", "a spec of another kind", "an unknown field", "a pipe", "half a status"),
        *("a status of a later version", "a status of wrong types", "a status of 2 MB"),
        *("a teacher of wrong types", "a list as teacher"),
    ],
)
def test_a_damaged_folder_is_refused_by_name_and_not_touched(bench, how):
    run, good = ended(bench, "stopped"), ended(bench, "stopped")
    lose_database(bench)
    path = bench.roots.runs / run.id
    broken(how, path)
    before = as_it_lies(path)
    adopted = adopt(bench)
    assert [one.id for one in adopted.runs] == [good.id]
    [(run_id, why)] = adopted.refused
    assert run_id == run.id and str(path) in why
    assert as_it_lies(path) == before
    assert adopt(bench, run.id, "no-such-run", "Not-An-Id", "../runs").refused[0][0] == run.id
    assert len(adopt(bench, run.id, "no-such-run", "Not-An-Id", "../runs").refused) == 4


def test_what_is_no_run_folder_is_passed_over(bench):
    for name in (".new-abc", ".deleted-gone-abc", "notes", ".forking-x"):
        (bench.roots.runs / name).mkdir()
    (bench.roots.runs / ".new-abc" / "spec.yaml").write_text("half")
    (bench.roots.runs / "file").write_text("x")
    assert adopt(bench) == Adopted()


def test_deleted_runs_come_back_only_if_they_are_named(bench):
    run = ended(bench, "stopped")
    kept = bench.roots.runs / "kept"
    shutil.copytree(bench.roots.runs / run.id, kept)
    delete_run(bench.commands, RunFolder(bench.roots.runs / run.id))
    shutil.move(kept, bench.roots.runs / run.id)
    assert adopt(bench) == Adopted()
    [again] = adopt(bench, run.id).runs
    assert again.state is RunState.STOPPED
    assert [change.id for change in bench.runs.changed_since(0)] == [run.id]
    aside = bench.roots.runs / f".deleted-{run.id}"
    lose_database(bench)
    (bench.roots.runs / run.id).rename(aside)
    assert adopt(bench) == Adopted()
    assert [one.id for one in adopt(bench, run.id).runs] == [run.id] and not aside.exists()


def test_a_folder_in_the_place_of_a_deleted_one_is_adopted_and_not_replaced(bench):
    run = ended(bench, "stopped")
    path = bench.roots.runs / run.id
    shutil.copytree(path, bench.roots.runs / "kept")
    delete_run(bench.commands, RunFolder(path))
    aside = bench.roots.runs / f".deleted-{run.id}"
    aside.mkdir()  # not all of its files could be removed
    (aside / "left").touch()
    (bench.roots.runs / "kept").rename(path)
    assert [one.id for one in adopt(bench, run.id).runs] == [run.id]
    finish_deletions(bench.runs, bench.roots.runs)  # as the next start does
    assert (path / "spec.yaml").exists()


def test_runs_are_adopted_in_the_order_of_their_creation(bench):
    runs = [ended(bench, "stopped") for _ in range(3)]
    for age, run in zip((5000, 9000, 7000), runs, strict=True):
        for path in (bench.roots.runs / run.id, *(bench.roots.runs / run.id).iterdir()):
            os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    lose_database(bench)
    adopt(bench)
    found = bench.runs.search(Search(), None, 9).runs
    assert [run.id for run in found] == [runs[0].id, runs[2].id, runs[1].id]
    assert found[0].created_at == 1_700_000_000 - 5000


# ---- a database that was restored from an older backup ------------------------------------------


class Restored:
    """A bench whose database can be put back to an earlier moment."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.backups = Backups(bench.roots.runs / DATABASE_NAME, bench.roots.backups)

    def back_up(self) -> None:
        self.copy = self.backups.make(Kind.PERIOD)

    def restore(self) -> None:
        assert self.copy is not None
        self.bench.store.close()
        for path in self.bench.roots.runs.glob(f"{DATABASE_NAME}*"):
            path.unlink()
        shutil.copyfile(self.copy, self.backups.database)
        reopen(self.bench)
        adoption_of(self.bench).catch_up()
        self.bench.tick()

    def end(self, run_id: str, state: str, step: int) -> None:
        process = self.bench.processes.last(run_id)
        process.say(state, step=step, checkpoint_step=step)
        process.end(0)
        self.bench.tick()

    def resume(self, run_id: str, step: int) -> None:
        self.bench.commands.request_resume(run_id)
        self.bench.tick()
        self.bench.processes.last(run_id).say("running", step=step)
        self.bench.tick(1)


@pytest.fixture
def restored(bench) -> Restored:
    return Restored(bench)


def test_a_run_that_made_ten_steps_more_and_stopped_shows_them_and_resumes_there(bench, restored):
    run = bench.started()
    restored.back_up()
    bench.commands.request_stop(run.id)
    bench.tick()
    restored.end(run.id, "stopped", 11)
    restored.restore()
    again = bench.runs.get(run.id)
    assert (again.last_status.step, again.checkpoint_step, again.attempt) == (11, 11, 1)
    bench.tick(2)  # the database does not know that it was stopped
    bench.tick(2)
    assert bench.processes.last(run.id).attempt == 2 and bench.processes.resumed[-1] is True
    assert len(bench.processes.alive()) == 1


def test_attempts_that_the_database_does_not_know_are_not_counted_again(bench, restored):
    run = ended(bench, "stopped", step=5)
    restored.back_up()
    restored.resume(run.id, 6)
    bench.commands.request_stop(run.id)
    bench.tick()
    restored.end(run.id, "stopped", 15)
    restored.restore()
    again = bench.runs.get(run.id)
    assert (again.state, again.attempt, again.last_status.step) == (RunState.STOPPED, 2, 15)
    restored.resume(run.id, 16)
    assert bench.processes.last(run.id).attempt == 3
    assert bench.runs.get(run.id).state is RunState.RUNNING
    assert bench.runs.get(run.id).last_status.step == 16


@pytest.mark.parametrize("state", ["succeeded", "failed", "interrupted"])
def test_a_later_attempt_that_ended_is_recorded_as_it_ended(bench, restored, state):
    run = ended(bench, "stopped", step=5)
    restored.back_up()
    restored.resume(run.id, 6)
    restored.end(run.id, state, 20)
    restored.restore()
    again = bench.runs.get(run.id)
    assert (again.state, again.attempt, again.last_status.step) == (state, 2, 20)


@pytest.mark.parametrize("backed_up", ["stopped", "running", "queued"])
def test_a_later_attempt_that_lives_is_adopted_and_no_second_trainer_starts(
    bench, restored, backed_up
):
    run = bench.started() if backed_up == "running" else ended(bench, "stopped")
    if backed_up == "queued":
        bench.commands.request_resume(run.id)
    restored.back_up()
    if backed_up == "running":
        bench.processes.last(run.id).end(-9)
        bench.tick()
        bench.tick(2)
    elif backed_up == "stopped":
        bench.commands.request_resume(run.id)
    bench.tick()
    bench.processes.last(run.id).say("running", step=25)
    bench.tick(1)
    process = bench.processes.last(run.id)
    assert process.attempt == 2
    restored.restore()
    again = bench.runs.get(run.id)
    assert (again.state, again.attempt, again.process) == ("running", 2, process.identity)
    assert again.wanted is Wanted.RUNNING and again.last_status.step == 25
    for _ in range(5):
        bench.tick(10)
    assert len(bench.processes.started) == 2 and process.alive


def test_a_later_attempt_that_was_killed_is_interrupted_and_goes_on(bench, restored):
    run = ended(bench, "stopped")
    restored.back_up()
    restored.resume(run.id, 8)
    bench.processes.last(run.id).end(-9)
    restored.restore()
    assert bench.runs.get(run.id).state is RunState.INTERRUPTED
    bench.tick(2)
    bench.tick()
    assert bench.processes.last(run.id).attempt == 3


def test_the_spec_of_the_later_attempt_counts(bench, restored):
    run = ended(bench, "stopped")
    restored.back_up()
    longer = spec(schedule={"steps": 500, "warmup_steps": 0})
    bench.commands.request_resume(run.id, lambda _: longer)
    bench.tick()
    bench.processes.last(run.id).say("running", step=9)
    restored.restore()
    assert bench.runs.get(run.id).run_spec == longer


def test_a_process_that_a_later_status_names_falsely_is_never_signalled(bench, tmp_path):
    """It names a living bystander: this test."""
    run = ended(bench, "stopped")
    folder = RunFolder(bench.roots.runs / run.id)
    me = identity_of(os.getpid())
    assert me is not None
    values = json.loads(folder.status_path.read_text())
    values |= {"attempt": 9, "state": "running", "pid": me.pid, "step": 9}
    values |= {"boot_id": me.boot_id, "start_ticks": me.start_ticks}
    folder.status_path.write_text(json.dumps(values))
    launcher = LocalLauncher(LocalProcesses())
    Adoption(bench.runs, bench.commands, bench.roots.runs, launcher.find).catch_up()
    assert bench.runs.get(run.id).process is None
    bench.commands.request_stop(run.id)
    loop = Reconciler(
        bench.runs, bench.commands, bench.roots, launcher, bench.devices, bench.clock, 0.0
    )
    for _ in range(3):
        bench.clock.advance(100)
        loop.tick()
    assert bench.runs.get(run.id).state is RunState.INTERRUPTED


def test_a_run_whose_process_cannot_be_looked_for_does_not_stop_the_others(bench):
    first, second = ended(bench, "stopped"), ended(bench, "stopped")
    for run in (first, second):
        path = RunFolder(bench.roots.runs / run.id).status_path
        path.write_text(json.dumps({**json.loads(path.read_text()), "attempt": 9}))

    def find(folder, attempt, said):
        if folder.run_id == first.id:
            raise OSError(5, "Input/output error", str(folder.path))
        return None

    Adoption(bench.runs, bench.commands, bench.roots.runs, find).catch_up()
    assert [bench.runs.get(run.id).attempt for run in (first, second)] == [first.attempt, 9]


def test_a_row_that_is_up_to_date_is_not_changed(bench):
    ended(bench, "stopped")
    bench.started()
    bench.create()
    revision = bench.runs.newest_revision()
    adoption_of(bench).catch_up()
    assert bench.runs.newest_revision() == revision


# ---- over REST, and at the start ----------------------------------------------------------------


def test_unknown_folders_are_mentioned_once_at_the_start(bench, capsys):
    run = ended(bench, "stopped")
    bench.store.close()
    (bench.roots.runs / DATABASE_NAME).unlink()
    capsys.readouterr()
    plane = open_plane(bench.roots, devices=bench.devices, launcher=LocalLauncher(bench.processes))
    plane.close()
    said = capsys.readouterr().err
    assert said.count(run.id) == 1 and "lectern runs adopt --all" in said
    RunFolder.create(bench.roots.runs, "other-run", spec())
    plane = open_plane(bench.roots, devices=bench.devices, launcher=LocalLauncher(bench.processes))
    assert {one.id for one in plane.adoption.adopt().runs} == {run.id, "other-run"}
    plane.close()


def test_adopt_over_rest(client, plane, processes):
    run = stopped_over_rest(client, processes)
    path = plane.roots.runs / run["id"]
    shutil.copytree(path, plane.roots.runs / "copied")
    (plane.roots.runs / "broken").mkdir()
    (plane.roots.runs / "broken" / "status.json").write_text("{}")
    answer = client.post("/runs/adopt", json={"run_ids": None}).json()
    assert [one["run_id"] for one in answer["adopted"]] == ["copied"]
    assert [one["run_id"] for one in answer["refused"]] == ["broken"]
    assert client.get("/runs/copied").json()["state"] == "stopped"
    assert client.post("/runs/adopt", json={}).json()["adopted"] == []
    assert client.post("/runs/adopt", json={"run_ids": []}).json() == {
        "adopted": [],
        "refused": [],
    }
    problem_of(client.post("/runs/adopt", json={"run_ids": "copied"}), 422, "invalid_request")
    problem_of(client.post("/runs/adopt", json={"ids": []}), 422, "invalid_request")


def test_a_folder_whose_name_cannot_be_sent_or_printed_is_refused_by_an_inert_name(
    client, plane, capsys
):
    for name in (b"not-\xff-utf8", b"\x1b[2Jclears"):
        folder = Path(os.fsdecode(os.fsencode(plane.roots.runs) + b"/" + name))
        folder.mkdir()
        (folder / "spec.yaml").write_text("name: a")
    answer = client.post("/runs/adopt", json={"run_ids": None})
    assert answer.status_code == 200, answer.text
    refused = [one["run_id"] for one in answer.json()["refused"]]
    assert refused == ["\\x1b[2Jclears", "not-\\udcff-utf8"]
    capsys.readouterr()
    plane.adoption.mention_unknown()
    assert "\x1b[2J" not in "".join(capsys.readouterr())
