"""Teachers: checked before a run is accepted, and shown whether reachable or not."""

import asyncio

import grpc
import pytest
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import open_plane
from control_plane.runs.search import Search
from control_plane.teachers.monitor import TeacherMonitor, _Teacher
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.run.folder import RunFolder
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.figures import teacher_figures
from lectern_common.teacher.identity import TeacherIdentity
from lectern_common.teacher.secrets import SecretFiles, Secrets
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from protos import teacher_pb2
from tests.control_plane.api.test_routes import left_behind, problem_of, stopped
from tests.control_plane.conftest import BASE_URL, make_home, spec_body, wait_for
from tests.support.fakes import NOBODY, FakeTeacher, serving

TOKENS = {"def": 0, "return": 1, "lectern": 2}
OTHER = {"def": 0, "yield": 1, "lectern": 2}


def write_student(plane, tokens=TOKENS) -> str:
    """Writes a model folder with weights and a tokenizer; returns their hash."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    folder = plane.roots.models / "small"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2", "vocab_size": 300}')
    save_file({"w": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    Tokenizer(WordLevel(dict(tokens), "def")).save(str(folder / "tokenizer.json"))
    return weights_sha256(safetensors_files(folder))


def distilling(address: str, **sections) -> dict:
    teacher = {"address": address, **sections.pop("teacher", {})}
    body = {**spec_body("distils"), "student": {"init": "small"}, "teacher": teacher}
    return {**body, "objective": {"alpha": 0.3}, **sections}


@pytest.fixture
def teacher():
    return FakeTeacher(TOKENS, tokenizer_sha256=tokenizer_sha256(TOKENS), num_tokens=3)


@pytest.fixture
def address(teacher):
    with serving(teacher) as address:
        yield address


def refused(client, plane, body, status, reason) -> str:
    """Returns the message of a run that is refused and leaves nothing behind."""
    found = problem_of(client.post("/runs", json=body), status, reason)
    assert plane.runs.search(Search(), None, 10).runs == []
    assert left_behind(plane) == []
    return str(found["detail"])


def test_a_fitting_teacher_is_accepted(client, plane, address):
    write_student(plane)
    response = client.post("/runs", json=distilling(address))
    assert response.status_code == 202, response.text
    run = response.json()
    assert (run["teacher"], run["representation"], run["alpha"], run["temperature"]) == (
        address,
        "hidden",
        0.3,
        2.0,
    )


def test_a_teacher_that_is_down_is_reported(client, plane):
    write_student(plane)
    said = refused(client, plane, distilling(NOBODY), 502, "teacher_unavailable")
    assert f"no teacher at {NOBODY}" in said
    assert "lectern teacher serve" in said


def test_another_tokenizer_is_refused_with_the_ids_that_differ(client, plane, address):
    write_student(plane, OTHER)
    said = refused(client, plane, distilling(address), 422, "tokenizer_mismatch")
    assert 'id 1: teacher "return", student "yield"' in said


def test_the_teacher_s_own_weights_are_refused_as_student(client, plane, teacher, address):
    """TEACHER-DIVERGENCE: teacher and student of the same weights distil nothing."""
    teacher.model.weights_sha256 = write_student(plane)
    said = refused(client, plane, distilling(address), 422, "same_weights")
    assert "teacher.allow_same_weights" in said
    body = distilling(address, teacher={"allow_same_weights": True})
    assert client.post("/runs", json=body).status_code == 202


def test_a_model_other_than_the_specs_is_refused(client, plane, address):
    write_student(plane)
    body = distilling(address, teacher={"model": "Qwen/other"})
    assert "serves fake-teacher" in refused(client, plane, body, 422, "wrong_model")


def test_a_representation_that_is_not_offered_is_refused_with_the_reason(
    client, plane, teacher, address
):
    write_student(plane)
    del teacher.model.representations[:]
    teacher.model.representations.append(
        teacher_pb2.RepresentationOffer(
            kind=teacher_pb2.REPRESENTATION_HIDDEN, reason="the head is not linear"
        )
    )
    said = refused(client, plane, distilling(address), 422, "representation_not_offered")
    assert "the head is not linear" in said


def test_a_run_over_the_teachers_limits_is_refused(client, plane, teacher, address):
    write_student(plane)
    teacher.model.limits.max_sequence_tokens = 8
    said = refused(client, plane, distilling(address), 422, "incompatible")
    assert "data.seq_len 16 exceeds the teacher's limit of 8 tokens" in said


def test_a_teacher_that_requires_a_token_is_not_a_401_for_the_client(
    client, plane, teacher, address
):
    """A 401 would make the page ask for the control plane's own token."""
    write_student(plane)
    refusal = (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", "this server needs a token")
    teacher.refusal = refusal
    found = client.post("/runs", json=distilling(address))
    body = problem_of(found, 422, "invalid_spec")
    assert body["errors"][0]["field"] == "teacher.token_file"


def test_a_missing_token_file_is_named(client, plane, address):
    write_student(plane)
    plane.checks._teachers = {address: SecretFiles(token_file="missing")}
    body = distilling(address, teacher={"token_file": "missing"})
    assert "missing" in refused(client, plane, body, 422, "invalid_spec")


def test_a_resume_checks_the_teacher_again(client, plane, processes, address):
    write_student(plane)
    run = stopped(client, processes, **distilling(address))
    response = client.post(f"/runs/{run['id']}/resume", json={"teacher": {"address": NOBODY}})
    problem_of(response, 502, "teacher_unavailable")
    assert client.get(f"/runs/{run['id']}").json()["state"] == "stopped"


def test_a_run_starts_with_the_teacher_it_was_accepted_with(
    client, plane, processes, teacher, address
):
    write_student(plane)
    accepted = client.post("/runs", json=distilling(address)).json()["id"]
    kept = TeacherIdentity("fake-teacher", "e" * 64)
    assert plane.runs.get(accepted).taught_by == kept
    wait_for(lambda: processes.started)
    assert RunFolder(plane.roots.runs / accepted).read_teacher() == kept


def test_a_resume_with_another_teacher_is_refused_at_once(
    client, plane, processes, teacher, address
):
    write_student(plane)
    run = stopped(client, processes, **distilling(address))
    teacher.model.model_id, teacher.model.fingerprint = "other", "d" * 64
    found = problem_of(client.post(f"/runs/{run['id']}/resume"), 422, "wrong_model")
    assert found["detail"] == (
        f"teacher.address {address} serves other (fingerprint dddddddddddd), but the run was "
        "accepted with fake-teacher (fingerprint eeeeeeeeeeee); put that model there again and "
        "resume the run, or create a new run for the other"
    )
    assert client.get(f"/runs/{run['id']}").json()["state"] == "stopped"


# ---- GET /teachers -------------------------------------------------------------------------------


def test_teachers_are_shown_with_their_statistics_or_their_problem(tmp_path, address, processes):
    plane = open_plane(
        make_home(tmp_path),
        devices=Devices((), max_running=2),
        teachers={address: SecretFiles(), NOBODY: SecretFiles()},
        launcher=LocalLauncher(processes),
    )
    with TestClient(create_app(plane), base_url=BASE_URL) as client:
        up, down = client.get("/teachers").json()["teachers"]
    assert (up["address"], up["reachable"], up["problem"]) == (address, True, None)
    assert (up["model"], up["device"], up["dtype"]) == ("fake-teacher", "cpu (fake)", "float32")
    assert (up["tokens_per_second"], up["queued_requests"], up["running_requests"]) == (
        9876.5,
        2,
        1,
    )
    assert {entry["name"] for entry in up["representations"]} == {"dense", "hidden", "top_k"}
    assert up["num_parameters"] == 2_200_000
    assert (down["address"], down["reachable"], down["seen_at"]) == (NOBODY, False, None)
    assert "no teacher at" in down["problem"]


def test_the_teacher_of_a_run_is_shown_with_the_run(client, plane, address):
    write_student(plane)
    run = client.post("/runs", json=distilling(address)).json()
    [shown] = client.get("/teachers").json()["teachers"]
    assert (shown["address"], shown["configured"], shown["runs"]) == (address, False, [run["id"]])


def test_a_teacher_that_goes_away_keeps_its_last_answer(client, plane, teacher, address):
    plane.teachers._configured = {address: SecretFiles()}
    assert client.get("/teachers").json()["teachers"][0]["reachable"]
    teacher.refusal = (grpc.StatusCode.UNAVAILABLE, "", "going down")
    plane.teachers._monotonic = lambda: 1e9
    [shown] = client.get("/teachers").json()["teachers"]
    assert not shown["reachable"]
    assert "going down" in shown["problem"]
    assert shown["model"] == "fake-teacher"
    assert shown["seen_at"]


def test_a_teacher_dropped_by_another_request_causes_no_error(tmp_path, address):
    asked_by = {address: ["run"]}

    async def ask() -> None:
        monitor = TeacherMonitor(make_home(tmp_path), {}, monotonic=iter(range(0, 900, 9)).__next__)
        [before] = await monitor.views(asked_by)
        channel = monitor._teachers[address].channel
        assert channel is not None
        channel.close()
        [after] = await monitor.views(asked_by)
        assert (before.reachable, after.reachable) == (True, False)

    asyncio.run(ask())


def test_concurrent_requests_share_one_channel_to_a_teacher(tmp_path, address, monkeypatch):
    opened = []

    def counted(*arguments):
        opened.append(TeacherChannel(*arguments))
        return opened[-1]

    monkeypatch.setattr("control_plane.teachers.monitor.TeacherChannel", counted)

    async def ask() -> None:
        monitor = TeacherMonitor(make_home(tmp_path), {})
        await asyncio.gather(*(monitor.views({address: ["run"]}) for _ in range(3)))
        assert len(opened) == 1
        monitor.close()

    asyncio.run(ask())


def test_unreadable_secrets_are_reported_until_they_can_be_read(tmp_path):
    """The server requires a token; the problem is that the token file does not exist yet."""

    class WantsToken(FakeTeacher):
        def GetModel(self, request, context):
            if ("authorization", "Bearer secret") not in context.invocation_metadata():
                self.refusal = (
                    grpc.StatusCode.UNAUTHENTICATED,
                    "unauthenticated",
                    "this server requires a bearer token",
                )
            self._refuse(context)
            return self.model

    async def ask(roots, address) -> None:
        configured = {address: SecretFiles(token_file="late.token")}
        monitor = TeacherMonitor(roots, configured, monotonic=iter(range(0, 900, 9)).__next__)
        for _ in range(2):
            [before] = await monitor.views({})
            assert not before.reachable
            assert before.problem is not None
            assert "cannot read late.token under the secrets root" in before.problem
        roots.secrets.mkdir()
        (roots.secrets / "late.token").write_text("secret")
        [after] = await monitor.views({})
        assert (after.reachable, after.problem) == (True, None)
        monitor.close()

    with serving(WantsToken()) as address:
        asyncio.run(ask(make_home(tmp_path), address))


def test_a_teacher_dropped_while_its_secrets_are_read_gets_no_channel(tmp_path, monkeypatch):
    async def ask() -> None:
        monitor = TeacherMonitor(make_home(tmp_path), {})

        def read(roots, files):
            monitor.close()
            return Secrets()

        monkeypatch.setattr("control_plane.teachers.monitor.read_secrets", read)
        monkeypatch.setattr("control_plane.teachers.monitor.TeacherChannel", None)
        assert await monitor.views({NOBODY: ["run"]}) == []

    asyncio.run(ask())


def test_the_accounts_of_a_teacher_name_the_runs_of_this_control_plane(
    client, plane, teacher, address
):
    write_student(plane)
    run = client.post("/runs", json=distilling(address)).json()
    teacher.stats.compute_seconds = 10.0
    teacher.stats.runs.add(run_id=run["id"], compute_seconds=7.5, tokens=900, weight=2.0)
    teacher.stats.runs.add(run_id="not-from-here-1", compute_seconds=2.5)
    teacher.stats.cache.MergeFrom(teacher_pb2.CacheStats(hits=1, misses=3, capacity_bytes=64))
    [shown] = client.get("/teachers").json()["teachers"]
    own, other = shown["accounts"]
    assert (own["run_id"], own["name"], own["compute_share"]) == (run["id"], "distils", 0.75)
    assert (own["tokens"], own["weight"]) == (900, 2.0)
    assert (other["run_id"], other["name"], other["weight"]) == ("not-from-here-1", None, None)
    assert shown["num_accounts"] == 2
    assert (shown["cache"]["hit_share"], shown["cache"]["capacity_bytes"]) == (0.25, 64)


def test_a_teacher_with_nan_statistics_is_still_shown(client, plane, teacher):
    teacher.stats.tokens_per_second = float("nan")
    teacher.stats.runs.add(run_id="run-1", compute_seconds=float("inf"))
    with serving(teacher) as address:
        plane.teachers._configured = {address: SecretFiles()}
        [shown] = client.get("/teachers").json()["teachers"]
    assert (shown["tokens_per_second"], shown["accounts"][0]["compute_seconds"]) == (0, 0)


@pytest.mark.parametrize(
    ("device", "engine", "address", "has_gpu", "warns"),
    [
        ("cpu", "transformers", "127.0.0.1:5", True, True),
        ("cpu (Ryzen)", "transformers", "localhost:5", True, True),
        ("cpu", "transformers", "[::1]:5", True, True),
        ("cpu", "transformers", "127.0.0.1:5", False, False),
        ("cpu", "transformers", "teacher:5", True, False),
        ("cpu", "transformers", "dns:///teacher:5", True, False),
        ("cpu", "fixture", "127.0.0.1:5", True, False),
        ("cuda:0 (H200)", "transformers", "127.0.0.1:5", True, False),
    ],
)
def test_a_teacher_on_the_cpu_of_a_machine_with_a_gpu_has_a_warning(
    tmp_path, teacher, device, engine, address, has_gpu, warns
):
    monitor = TeacherMonitor(make_home(tmp_path), {}, has_gpu)
    facts = teacher_figures(
        teacher_pb2.Model(device=device, engine=engine, mode="independent"), teacher.stats
    )
    monitor._teachers[address] = _Teacher(None, facts=facts)
    warning = monitor._view(address, []).warning
    assert (warning is not None) == warns
    assert warning is None or "while this machine has a GPU" in warning
