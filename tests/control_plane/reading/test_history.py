"""A run's history: both sources, newest first, in pages that lose and double nothing."""

import json

import pytest
import sqlalchemy as sa

from control_plane.reading import history
from control_plane.reading.history import HistoryPosition, history_page, recent_history
from control_plane.runs.store import history as history_table
from lectern_common.errors import InvalidRequest
from lectern_common.json_lines import append_json_line
from lectern_common.run.folder import RunFolder


def folder_of(bench, run_id="r-1") -> RunFolder:
    folder = RunFolder(bench.roots.runs / run_id)
    folder.path.mkdir(parents=True)
    return folder


def add_states(bench, folder, *pairs) -> None:
    rows = [
        {"run_id": folder.run_id, "at": at, "attempt": 1, "wanted": "running", "state": state}
        for at, state in pairs
    ]
    with bench.store.writing() as connection:
        connection.execute(sa.insert(history_table), rows)


def add_checkpoints(folder, *times) -> None:
    with folder.events_path.open("a") as file:
        for time in times:
            file.write(json.dumps({"time": time, "kind": "checkpoint", "step": time}) + "\n")


def all_pages(bench, folder, limit, kind=None):
    pages = []
    position: HistoryPosition | None = HistoryPosition()
    while position is not None:
        entries, position = history_page(bench.runs, folder, position, limit, kind)
        assert len(entries) <= limit
        pages.append(entries)
        if position is not None:
            position = HistoryPosition.parse(str(position))
    return pages


def told(entries):
    return [(entry.at, entry.kind) for entry in entries]


def test_a_history_merges_states_and_events_by_time(bench):
    folder = folder_of(bench)
    folder.events_path.write_text(
        '{"time": 5, "kind": "checkpoint", "step": 3}\n'
        '{"time": 7, "kind": "state", "state": "running"}\n'
        '{"time": 9, "kind": "warning", "message": "slow \\ud800", "loss": 1e999}\n'
        "garbage\n[1]\n"
        '{"kind": "no time"}\n{"time": NaN, "kind": "x"}\n{"time": 1e999, "kind": "x"}\n'
        '{"time": 10, "kind": "torn'
    )
    add_states(bench, folder, (1, "queued"), (8, "running"))
    recent = recent_history(bench.runs, folder)
    assert told(recent) == [(1, "state"), (5, "checkpoint"), (8, "state"), (9, "warning")]
    assert recent[1].details == {"step": 3}
    assert (recent[3].message, recent[3].details) == ("slow ?", {"loss": None})
    for limit in (1, 2, 3, 50):
        pages = all_pages(bench, folder, limit)
        assert [entry for page in pages for entry in page] == recent[::-1]


def test_the_newest_of_many_states_come_first(bench):
    folder = folder_of(bench)
    add_states(bench, folder, *((at, "running") for at in range(1500)), (1500, "failed"))
    pages = all_pages(bench, folder, 200)
    assert pages[0][0].state == "failed"
    assert [entry.at for page in pages for entry in page] == [*range(1500, -1, -1)]
    assert [entry.at for entry in recent_history(bench.runs, folder)] == [*range(1401, 1501)]


def test_checkpoints_and_other_floods_crowd_nothing_out(bench):
    folder = folder_of(bench)
    add_states(bench, folder, (1, "queued"), (2, "starting"), (3, "running"))
    append_json_line(folder.events_path, {"time": 4, "kind": "assembled"})
    add_checkpoints(folder, *range(10, 2000))
    add_states(bench, folder, (2500, "stopping"), (2501, "stopped"))
    recent = recent_history(bench.runs, folder)
    states = [entry.state for entry in recent if entry.kind == "state"]
    assert states == ["queued", "starting", "running", "stopping", "stopped"]
    assert "assembled" in {entry.kind for entry in recent}
    assert [entry.at for entry in recent if entry.kind == "checkpoint"] == [*range(1950, 2000)]
    assert [entry.at for page in all_pages(bench, folder, 2, "state") for entry in page] == [
        2501,
        2500,
        3,
        2,
        1,
    ]
    checkpoints = [e.at for page in all_pages(bench, folder, 99, "checkpoint") for e in page]
    assert checkpoints == [*range(1999, 9, -1)]
    assert [told(page) for page in all_pages(bench, folder, 5, "assembled")] == [[(4, "assembled")]]


@pytest.mark.parametrize("block", [64, 100, 1000, 4096])
def test_a_long_file_is_read_in_blocks_from_its_end(bench, monkeypatch, block):
    monkeypatch.setattr(history, "MAX_EVENT_BYTES", block)
    folder = folder_of(bench)
    add_states(bench, folder, *((at + 0.5, "running") for at in range(0, 300, 20)))
    add_checkpoints(folder, *range(150))
    with folder.events_path.open("a") as file:
        file.write("x" * 5000 + "\n")  # longer than a block: passed over
    add_checkpoints(folder, *range(150, 300))
    pages = all_pages(bench, folder, 7)
    found = [entry.at for page in pages for entry in page]
    expected = [*range(300), *(at + 0.5 for at in range(0, 300, 20))]
    assert found == sorted(expected, reverse=True)


def test_pages_stand_still_while_the_history_grows(bench):
    folder = folder_of(bench)
    add_checkpoints(folder, *range(10))
    add_states(bench, folder, (0.5, "queued"), (20, "stopped"))
    first, position = history_page(bench.runs, folder, limit=1)
    add_checkpoints(folder, 30)
    add_states(bench, folder, (31, "queued"))
    assert position is not None
    second, _ = history_page(bench.runs, folder, position, limit=50)
    assert told(first) == [(20, "state")]
    assert [entry.at for entry in second] == [*range(9, 0, -1), 0.5, 0]


def test_a_clock_that_is_set_back_does_not_change_the_order(bench):
    """S12: entries keep the order they were written in, whatever their times."""
    folder = folder_of(bench)
    for time, step in ((100, 1), (3, 2), (4, 3), (130, 4)):
        append_json_line(folder.events_path, {"time": time, "kind": "checkpoint", "step": step})
    add_states(bench, folder, (90, "queued"), (95, "running"), (2, "stopping"), (140, "stopped"))
    for limit in (1, 3, 50):
        entries = [entry for page in all_pages(bench, folder, limit) for entry in page][::-1]
        steps = [entry.details["step"] for entry in entries if entry.kind == "checkpoint"]
        states = [entry.state for entry in entries if entry.kind == "state"]
        assert steps == [1, 2, 3, 4]
        assert states == ["queued", "running", "stopping", "stopped"]
        assert (entries[0].state, entries[-1].state) == ("queued", "stopped")


def test_a_run_without_a_folder_has_its_states(bench):
    run = bench.create()
    assert [
        entry.state for entry in recent_history(bench.runs, RunFolder(bench.roots.runs / run.id))
    ] == ["queued"]


@pytest.mark.parametrize("text", ["", "1", "1.2.3", "-1.0", "x.1", "1.\u0661", "9" * 40 + ".1"])
def test_what_is_no_position_is_refused(text):
    with pytest.raises(InvalidRequest):
        HistoryPosition.parse(text)


def add_trainer_states(folder, *pairs) -> None:
    with folder.events_path.open("a") as file:
        for time, state in pairs:
            event = {"time": time, "kind": "state", "state": state, "message": f"{state} at {time}"}
            file.write(json.dumps(event) + "\n")


def test_an_outage_while_the_control_plane_was_down_is_taken_from_the_trainers_events(bench):
    folder = folder_of(bench)
    add_states(bench, folder, (1, "queued"), (2, "starting"), (10, "running"))
    add_trainer_states(
        folder,
        (10, "running"),
        (100, "waiting_for_teacher"),
        (160, "running"),
        (1000, "waiting_for_teacher"),
        (1030, "running"),
    )
    # It was down for the first outage, and up again for the second.
    add_states(bench, folder, (1001, "waiting_for_teacher"), (1031, "running"))
    recent = recent_history(bench.runs, folder)
    assert told(recent) == [
        (1, "state"),
        (2, "state"),
        (10, "state"),
        (100, "teacher_away"),
        (160, "teacher_back"),
        (1001, "state"),
        (1031, "state"),
    ]
    assert recent[3].message == "waiting_for_teacher at 100"
    for limit in (1, 2, 3, 50):
        pages = all_pages(bench, folder, limit)
        assert [entry for page in pages for entry in page] == recent[::-1]
    [[only]] = all_pages(bench, folder, 50, "teacher_away")
    assert only.at == 100


def test_an_outage_that_began_while_it_was_down_is_told_when_it_began(bench):
    folder = folder_of(bench)
    add_trainer_states(folder, (100, "waiting_for_teacher"), (400, "running"))
    add_states(bench, folder, (1, "running"), (300, "waiting_for_teacher"), (401, "running"))
    assert told(recent_history(bench.runs, folder)) == [
        (1, "state"),
        (100, "teacher_away"),
        (300, "state"),
        (401, "state"),
    ]
