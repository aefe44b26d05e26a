"""POST /runs/check tells what POST /runs would, and creates nothing; checkpoints are listed."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from control_plane.plane import ControlPlane
from lectern_common.run.folder import RunFolder
from tests.control_plane.conftest import spec_body
from tests.support.fakes import NOBODY, FakeTeacher, serving


def check(client: TestClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/runs/check", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_good_spec_passes_with_its_defaults_and_an_estimate(client: TestClient) -> None:
    found = check(client, spec_body(steps=20))
    assert found["ok"]
    assert found["spec"]["optimizer"]["learning_rate"] == 1e-4
    assert {one["subject"]: one["outcome"] for one in found["checks"]} == {
        "data": "pass",
        "student": "pass",
    }
    assert (found["estimate"]["tokens_per_step"], found["estimate"]["tokens"]) == (128, 2560)
    assert found["estimate"]["teacher_hours"] is None
    assert client.get("/runs").json()["runs"] == []


def test_the_estimate_asks_the_teacher(client: TestClient) -> None:
    with serving(FakeTeacher(measured_tokens_per_second=100.0)) as address:
        body = spec_body(teacher={"address": address}, objective={"alpha": 0.3})
        found = check(client, body)
    assert found["ok"]
    assert found["estimate"]["teacher_hours"] > 0
    assert found["estimate"]["bytes_per_step"] > 0


@pytest.mark.parametrize(
    ("sections", "subject", "field"),
    [
        ({"data": {"path": "nowhere", "seq_len": 16}}, "data", "data.path"),
        ({"student": {"config": "nothing"}}, "student", "student.config"),
        ({"teacher": {"address": NOBODY}, "objective": {"alpha": 0.3}}, "teacher", None),
    ],
)
def test_what_would_be_refused_fails_its_check(
    client: TestClient, sections: dict[str, Any], subject: str, field: str | None
) -> None:
    found = check(client, spec_body(**sections))
    assert not found["ok"]
    failed = [one for one in found["checks"] if one["outcome"] == "fail"]
    assert [(one["subject"], one["field"]) for one in failed] == [(subject, field)]


def test_a_spec_that_is_none_is_refused_field_by_field(client: TestClient) -> None:
    answer = client.post("/runs/check", json=spec_body("Bad Name", optimizer={"learning_rate": -1}))
    assert answer.status_code == 422
    fields = [error["field"] for error in answer.json()["errors"]]
    assert fields == ["name", "optimizer.learning_rate"]


def test_checkpoints_are_listed_with_size_and_validation_loss(
    client: TestClient, plane: ControlPlane
) -> None:
    run_id = client.post("/runs", json=spec_body()).json()["id"]
    assert client.get(f"/runs/{run_id}/checkpoints").json()["checkpoints"] == []
    folder = RunFolder(plane.roots.runs / run_id)
    losses = {5: 2.5, 10: None, 15: "NaN", 20: float("nan")}
    for step, loss in losses.items():
        path = folder.checkpoints_path / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "state.json").write_text(json.dumps({"step": step, "val_loss": loss}))
        (path / "model.safetensors").write_bytes(b"x" * 100)
    (folder.checkpoints_path / ".writing-step-00000025").mkdir()
    found = client.get(f"/runs/{run_id}/checkpoints").json()["checkpoints"]
    assert [(one["step"], one["validation_loss"]) for one in found] == [
        (5, 2.5),
        (10, None),
        (15, None),
        (20, None),
    ]
    assert all(one["bytes"] > 100 for one in found)
    assert client.get("/runs/none/checkpoints").status_code == 404
