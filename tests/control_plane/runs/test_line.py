"""Queued runs start by priority, then by age, and labels change in any state."""

import json
import random

import pytest
import sqlalchemy as sa

from control_plane.api.requests import with_labels
from control_plane.runs.record import Run
from control_plane.runs.search import Search
from control_plane.runs.store import runs
from control_plane.trainers.devices import Devices
from lectern_common.errors import InvalidSpec
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from tests.control_plane.conftest import Bench


def line(bench: Bench) -> list[str]:
    """Returns the names of the queued runs in the order of their places."""
    queued = bench.runs.search(Search(states=[RunState.QUEUED]), None, 200).runs
    queued.sort(key=lambda run: run.queue_position or 0)
    assert [run.queue_position for run in queued] == list(range(1, len(queued) + 1))
    assert [run.id for run in queued] == [run.id for run in bench.runs.in_line()]
    return [run.name for run in queued]


def label(bench: Bench, run: Run, **labels) -> Run:
    return bench.commands.set_labels(run.id, lambda spec: with_labels(spec, labels))


def full(tmp_path) -> Bench:
    """Returns a bench on which one run trains and no other may."""
    bench = Bench.of(tmp_path, Devices((), max_running=1))
    bench.started("trains")
    return bench


def test_the_highest_priority_is_first_and_equals_are_by_age(tmp_path):
    bench = full(tmp_path)
    for name, priority in {"a": 0, "b": 7, "c": -3, "d": 7, "e": 100, "f": -100}.items():
        bench.create(name, priority=priority)
    bench.tick()
    assert line(bench) == ["e", "b", "d", "a", "c", "f"]


def test_a_run_has_its_place_before_any_look(tmp_path):
    bench = full(tmp_path)
    places = [bench.create(f"r-{p}", priority=p).queue_position for p in (0, 5, 5, 1, -1)]
    assert places == [1, 1, 2, 3, 5]


def test_a_run_of_a_higher_priority_that_arrives_shifts_the_others(tmp_path):
    bench = full(tmp_path)
    first, second = bench.create("a"), bench.create("b")
    bench.tick()
    revision = bench.runs.newest_revision()
    bench.create("c", priority=1)
    bench.tick()
    assert line(bench) == ["c", "a", "b"]
    news = bench.runs.changed_since(revision)
    changed = {run.id for run in news if isinstance(run, Run)}
    assert {first.id, second.id} < changed  # so that an open page hears of it


def test_a_changed_priority_changes_the_place_at_once_and_the_others_at_the_next_look(tmp_path):
    bench = full(tmp_path)
    made = [bench.create(name) for name in ("a", "b", "c")]
    assert label(bench, made[2], priority=3).queue_position == 1
    bench.tick()
    assert line(bench) == ["c", "a", "b"]
    assert label(bench, made[2], priority=-3).queue_position == 3
    bench.tick()
    assert line(bench) == ["a", "b", "c"]


def test_runs_are_claimed_in_line(tmp_path):
    bench = Bench.of(tmp_path, Devices((), max_running=1))
    for name, priority in {"low": -1, "old": 0, "high": 2, "young": 0}.items():
        bench.create(name, priority=priority)
    started = []
    for _ in range(4):
        bench.tick(1)
        process = bench.processes.started[-1]
        started.append(process.folder.run_id.rpartition("-")[0])
        process.say("succeeded", step=20)
        process.end(0)
        bench.tick(1)
    assert started == ["high", "old", "young", "low"]


@pytest.mark.parametrize("damage", ["not json", '{"priority": "high"}', '{"priority": null}', "[]"])
def test_a_damaged_or_old_spec_stands_in_line_with_priority_0(tmp_path, damage):
    bench = full(tmp_path)
    made = {name: bench.create(name, priority=p) for name, p in {"a": 1, "b": 9, "c": -1}.items()}
    with bench.store.writing() as connection:
        spec = json.loads(damage) if damage[0] in "{[" else None
        text = damage if spec is None else json.dumps(spec)
        query = "UPDATE runs SET spec = :spec WHERE id = :id"
        connection.execute(sa.text(query), {"spec": text, "id": made["b"].id})
    assert [run.name for run in bench.runs.in_line()] == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(8))
def test_the_first_of_the_highest_priority_is_not_starved_for_its_gpus(tmp_path, seed):
    """It needs both GPUs, and younger, smaller runs of its own and lower priorities keep coming."""
    rng = random.Random(seed)  # noqa: S311
    bench = Bench.of(tmp_path, Devices(("0", "1"), max_running=3, cores=4))
    bench.started("one", device={"kind": "cuda"})
    bench.started("two", device={"kind": "cuda"})
    big = bench.create("big", device={"kind": "cuda", "count": 2}, priority=5)
    ends = 0
    while bench.runs.get(big.id).state == "queued":
        bench.create("small", device={"kind": rng.choice(["cuda", "auto"])}, priority=5)
        bench.create("low", device={"kind": rng.choice(["cuda", "auto"])}, priority=-5)
        bench.tick(1)
        living = [process for process in bench.processes.started if process.alive]
        if bench.runs.get(big.id).state == "queued":
            rng.choice(living).end(1)
            ends += 1
            assert ends <= 2, "a GPU that was free went to another run"
            bench.tick(1)
    assert bench.runs.get(big.id).slots == ["cuda:0", "cuda:1"]


# ---- labels --------------------------------------------------------------------------------------


def test_labels_change_in_every_state_with_one_revision_and_no_history(bench):
    queued, running = bench.create("queued"), bench.started("running")
    for run in (queued, running):
        before, history = bench.runs.get(run.id), bench.runs.history(run.id)
        revision = bench.runs.newest_revision()
        after = label(bench, run, priority=4, group="g", tags=["x", "y"], notes="first try")
        assert after.revision == revision + 1 == bench.runs.newest_revision()
        assert [after.spec[name] for name in ("priority", "group", "tags", "notes")] == [
            *(4, "g", ["x", "y"], "first try")
        ]
        assert (after.state, after.reason, after.since) == (before.state, None, before.since)
        assert bench.runs.history(run.id) == history


def test_the_same_labels_again_change_nothing(bench):
    run = bench.create(tags=["a"])
    label(bench, run, tags=["a"], priority=0, group=None)
    assert bench.runs.newest_revision() == run.revision


def test_everything_else_of_the_stored_spec_stays_as_it_is(bench):
    """A spec of an earlier release lacks sections that a resume would then take for its own."""
    run = bench.create()
    stored = {name: value for name, value in run.spec.items() if name not in ("notes", "report_to")}
    with bench.store.writing() as connection:
        connection.execute(sa.update(runs).values(spec=stored))
    after = label(bench, run, priority=1)
    assert after.spec.keys() - stored.keys() == {"notes"}
    assert {**after.spec, **stored, "priority": 1} == after.spec


def test_a_trainer_keeps_its_spec_until_the_next_launch_writes_the_row_anew(bench):
    run = bench.started()
    folder = RunFolder(bench.roots.runs / run.id)
    label(bench, run, priority=9, notes="later")
    bench.tick(1)
    assert folder.read_spec().priority == 0
    bench.processes.last(run.id).say("interrupted", step=2, checkpoint_step=2)
    bench.processes.last(run.id).end(1)
    bench.tick(1)
    bench.commands.request_resume(run.id)
    bench.tick(1)
    assert (folder.read_spec().priority, folder.read_spec().notes) == (9, "later")


@pytest.mark.parametrize(
    ("labels", "field", "why"),
    [
        ({"prioriti": 1}, "prioriti", "did you mean priority?"),
        ({"seed": 1}, "seed", "only priority, group, tags, notes"),
        ({"schedule": {"steps": 5}}, "schedule", "only priority, group, tags, notes"),
        ({"name": "other"}, "name", "only priority, group, tags, notes"),
        ({"priority": 101}, "priority", "at most 100"),
        ({"priority": -101}, "priority", "at least -100"),
        ({"priority": 1.5}, "priority", "expected an integer"),
        ({"priority": None}, "priority", "expected an integer"),
        ({"group": ""}, "group", "lower-case"),
        ({"group": "A b"}, "group", "lower-case"),
        ({"tags": "a"}, "tags", "list"),
        ({"tags": None}, "tags", "list"),
        ({"tags": ["a", "a"]}, "tags", "repeat"),
        ({"tags": ["a,b"]}, "tags.0", "without spaces and commas"),
        ({"tags": [str(n) for n in range(21)]}, "tags", "at most 20"),
        ({"notes": None}, "notes", "expected text, got null"),
        ({"notes": "x" * 4097}, "notes", "4096"),
    ],
)
def test_a_wrong_label_is_refused_by_field(bench, labels, field, why):
    run = bench.create(notes="kept")
    with pytest.raises(InvalidSpec) as refused:
        label(bench, run, **{"notes": "lost", **labels})
    assert [problem[0] for problem in refused.value.problems] == [field]
    assert why in refused.value.problems[0][1]
    assert bench.runs.get(run.id).spec == run.spec


def test_a_group_is_cleared_by_null(bench):
    run = bench.create(group="sweep-1")
    assert label(bench, run, group=None).spec["group"] is None


# ---- found by labels -----------------------------------------------------------------------------


def test_runs_are_found_by_group_and_by_all_of_the_tags(bench):
    bench.create("a", group="g", tags=["x", "y"])
    bench.create("b", group="g", tags=["x"])
    bench.create("c", group="h", tags=["y", "x", "x-y"])
    bench.create("d")

    def found(**query) -> str:
        result = bench.runs.search(Search(**query), None, 10)
        assert result.total == len(result.runs)
        return "".join(run.name for run in result.runs)

    assert found(group="g") == "ba"
    assert found(group="none") == ""
    assert found(tags=["x"]) == "cba"
    assert found(tags=["x", "y"]) == "ca"
    assert found(tags=["y", "x"], group="g") == "a"
    assert found(tags=["x", "z"]) == ""
    assert found(tags=["X"]) == ""
    assert found(tags=["x"], sort="name", text="b") == "b"
    with bench.store.writing() as connection:  # a damaged row hides no other
        connection.execute(sa.text("UPDATE runs SET spec = 'x' WHERE name = 'b'"))
        connection.execute(sa.text("""UPDATE runs SET spec = '{"tags": 3}' WHERE name = 'd'"""))
    assert (found(group="g"), found(tags=["x"])) == ("a", "ca")
