"""Marks of a chart: where a run was taken up again, and where a fork merely begins."""

import pytest

from control_plane.reading.series.marks import marks_of
from control_plane.reading.series.query import EVERY_STEP
from lectern_common.json_lines import append_json_line
from lectern_common.run.folder import ForkedFrom, RunFolder


@pytest.mark.parametrize(
    ("forked_at", "assembled", "restarts"),
    [
        (None, [0], []),
        (None, [0, 150], [150]),
        (None, [150], [150]),  # its first events were cut
        (200, [200], []),
        (200, [200, 200, 250], [200, 250]),
    ],
)
def test_a_fork_does_not_restart_where_it_begins(tmp_path, forked_at, assembled, restarts):
    folder = RunFolder(tmp_path)
    if forked_at is not None:
        folder.write_forked_from(ForkedFrom("source-abcdef", forked_at))
    for time, step in enumerate(assembled):
        append_json_line(folder.events_path, {"time": time, "kind": "assembled", "step": step})
    marks = marks_of(folder, [], EVERY_STEP)
    assert [mark["step"] for mark in marks if mark["kind"] == "restart"] == restarts


def test_a_wrong_forked_from_hides_no_chart(tmp_path):
    folder = RunFolder(tmp_path)
    folder.forked_from_path.write_text("[]")
    append_json_line(folder.events_path, {"time": 1, "kind": "assembled", "step": 5})
    assert [mark["kind"] for mark in marks_of(folder, [], EVERY_STEP)] == ["restart"]
