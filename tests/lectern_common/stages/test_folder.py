"""Task folders: what is written can be read, and what cannot be believed is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lectern_common.errors import Conflict, CorruptData, InvalidSpec, NotFound
from lectern_common.run.status import RunState
from lectern_common.stages.folder import TaskFolder
from lectern_common.stages.requests import parse_request
from lectern_common.stages.status import MAX_SAID, TaskStatus
from tests.support.stand_in_stage import CountRequest

STATUS = TaskStatus("t", "evaluate", RunState.RUNNING, 1.0, 2.0, pid=7)


@pytest.fixture
def folder(tmp_path: Path) -> TaskFolder:
    return TaskFolder.create(tmp_path / "tasks" / "t", "evaluate", {"count": 5})


def test_what_is_asked_is_read_back(folder):
    assert folder.read_asked() == ("evaluate", {"count": 5})
    assert [path.name for path in folder.path.parent.iterdir()] == ["t"]


def test_a_task_replaces_nothing(folder):
    with pytest.raises(Conflict, match="exists"):
        TaskFolder.create(folder.path, "export", {})
    assert folder.read_asked() == ("evaluate", {"count": 5})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stage": 3}', "[" * 100_000])
def test_a_damaged_task_is_refused_by_name(folder, text):
    folder.task_path.write_text(text)
    with pytest.raises(CorruptData, match=r"task\.json"):
        folder.read_asked()


def test_a_folder_without_a_task_is_named(tmp_path):
    with pytest.raises(NotFound, match="no task in"):
        TaskFolder(tmp_path).read_asked()


def test_a_status_is_read_back(folder):
    assert folder.read_status() is None
    status = replace(STATUS, doing="problems", done=3, of=9, per_second=2.0, said=["so"])
    folder.write_status(status)
    assert folder.read_status() == status
    assert status.seconds_left == 3.0


def test_a_status_is_bounded_when_it_is_written(folder):
    said = [f"{number}" for number in range(MAX_SAID + 5)]
    folder.write_status(
        replace(STATUS, message="x" * 100_000, per_second=float("nan"), said=said, num_said=25)
    )
    status = folder.read_status()
    assert status is not None
    assert len(status.message or "") <= 4000
    assert status.per_second is None
    assert status.said == said[5:]
    assert status.said_after(23) == ["23", "24"]
    assert status.said_after(0) == said[5:]
    assert status.said_after(25) == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"version": 2}, "version 2, but this program reads version 1"),
        ({"version": True}, "no version"),
        ({"state": "asleep"}, "state"),
        ({"done": -1}, "done"),
        ({"pid": "7"}, "pid"),
        ({"said": ["x"] * (MAX_SAID + 1)}, "said"),
    ],
)
def test_a_status_is_not_believed(folder, changed, named):
    folder.write_status(STATUS)
    values = json.loads(folder.status_path.read_bytes()) | changed
    folder.status_path.write_text(json.dumps(values))
    with pytest.raises(CorruptData, match=named):
        folder.read_status()


def test_a_result_is_json_and_its_text_a_file_beside_it(folder):
    assert folder.read_result() is None
    folder.write_result({"score": 0.5, "markdown": "half\n"})
    assert json.loads(folder.result_path.read_bytes()) == {"score": 0.5}
    assert folder.markdown_path.read_text() == "half\n"
    assert folder.read_result() == {"score": 0.5, "markdown": "half\n"}


def test_a_result_that_is_not_json_is_refused_whole(folder):
    with pytest.raises(ValueError, match="JSON"):
        folder.write_result({"score": float("nan"), "markdown": "none"})
    assert folder.read_result() is None
    folder.result_path.write_text("[1]")
    with pytest.raises(CorruptData, match="not a JSON object"):
        folder.read_result()


def test_two_processes_do_not_work_on_a_task_at_once(folder):
    with (
        folder.locked(),
        pytest.raises(Conflict, match="task t is being worked on"),
        folder.locked(),
    ):
        pass


def test_a_request_is_refused_field_by_field():
    requests = {"evaluate": lambda: CountRequest}
    assert parse_request("evaluate", {"count": 2}, requests) == CountRequest(count=2)
    with pytest.raises(InvalidSpec) as caught:
        parse_request("evaluate", {"count": 0, "cuont": 1}, requests)
    assert {field for field, _ in caught.value.problems} == {"count", "cuont"}
    with pytest.raises(InvalidSpec, match="stage: expected one of evaluate"):
        parse_request("bake", {}, requests)
