"""`lectern demo --on-policy` with few steps: three students, judged on texts of their own."""

import json
from pathlib import Path

import pytest

from lectern_common.json_lines import read_json_lines
from tests.support.stack import lectern, marked_processes

STEPS = 2


@pytest.mark.long
def test_the_demo_trains_on_policy_and_judges_each_student(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "demo"
    few = ("--teacher-steps", str(STEPS), "--student-steps", str(STEPS))
    ended = lectern("demo", "--on-policy", "--exit", "--folder", folder, *few)
    assert ended.code == 0, ended.err
    assert marked_processes(mark) == []
    summary = json.loads((folder / "on-policy.json").read_text())
    assert [one["name"] for one in summary["students"]] == ["forward-kl", "off-policy", "on-policy"]
    for student in summary["students"]:
        assert student["name"] in ended.out
        assert student["reverse_kl"] > 0
        assert 0 <= student["clean_share"] <= student["finished_share"] <= 1
        judged = folder / "runs" / student["judged_by"]
        rows = read_json_lines(judged / "rollouts.jsonl")
        assert rows
        assert all(len(row["kl"]) == len(row["tokens"]) for row in rows)
    # The second and the third went on from the first, and each from its own teaching.
    first, off_policy, on_policy = (
        json.loads((folder / "runs" / one["run"] / "export" / NAME).read_text())
        for one in summary["students"]
    )
    for after in (off_policy, on_policy):
        assert after["initial_weights_sha256"] == first["student_weights_sha256"]
    assert off_policy["student_weights_sha256"] != on_policy["student_weights_sha256"]


NAME = "distillation_metadata.json"
