"""Alerts, their test and the version over REST; no secret of the webhook is ever in an answer."""

import platform
from contextlib import contextmanager
from importlib.metadata import version

import pytest
from starlette.testclient import TestClient

from control_plane.api.app import create_app
from control_plane.plane import open_plane
from control_plane.trainers.devices import Devices
from control_plane.trainers.launching.local import LocalLauncher
from lectern_common.run.status import RunState
from lectern_common.run.webhook import Receiver
from tests.control_plane.conftest import BASE_URL, make_home, spec, wait_for
from tests.support.fakes import FakeClock, FakeProcesses
from tests.support.webhook import webhook

TOKEN, READ = "the-token-of-these-tests", "another-token-that-reads"
SECRET = "a-secret-that-signs"
PATH = "/services/T0KEN-of-the-path?key=abcdefgh"


@contextmanager
def planned(folder, url=None):
    plane = open_plane(
        make_home(folder),
        devices=Devices((), max_running=2),
        launcher=LocalLauncher(FakeProcesses(FakeClock())),
        receiver=None if url is None else Receiver(url, SECRET),
    )
    app = create_app(plane, token=TOKEN, read_token=READ)
    with TestClient(app, base_url=BASE_URL) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client, plane


def fail(plane, name="coder"):
    run = plane.commands.create(spec(name))
    plane.commands.claim(run.id, ("cpu",))
    return plane.commands.ended(run.id, RunState.FAILED, "oom", "no memory")


def test_alerts_are_listed_newest_first_after_a_seq(tmp_path):
    with planned(tmp_path) as (client, plane):
        assert client.get("/alerts").json() == {"receiver": None, "alerts": []}
        runs = [fail(plane, f"r-{number}") for number in range(3)]
        found = client.get("/alerts", headers={"Authorization": f"Bearer {READ}"}).json()["alerts"]
        assert [alert["run_id"] for alert in found] == [run.id for run in reversed(runs)]
        newest = found[0]
        assert newest == {
            "seq": 3,
            "at": pytest.approx(plane.clock(), abs=60),
            "kind": "failed",
            "run_id": runs[2].id,
            "name": "r-2",
            "state": "failed",
            "reason": "oom",
            "step": 0,
            "message": f"{runs[2].id} failed at step 0: oom: no memory",
            "attempts": 0,
            "next_try_at": None,
            "delivered_at": None,
            "last_error": None,
        }
        assert [one["seq"] for one in client.get("/alerts?after=1").json()["alerts"]] == [3, 2]
        assert [one["seq"] for one in client.get("/alerts?limit=1").json()["alerts"]] == [3]
        for query in ("after=-1", "after=x", "limit=0", "limit=1001"):
            assert client.get(f"/alerts?{query}").status_code == 422


def test_an_alert_is_delivered_and_says_so(tmp_path):
    with webhook(PATH) as receiver, planned(tmp_path, receiver.url) as (client, plane):
        run = fail(plane)
        wait_for(lambda: client.get("/alerts").json()["alerts"][0]["delivered_at"])
        answer = client.get("/alerts").json()
        assert answer["receiver"] == receiver.url.removesuffix(PATH)
        assert answer["alerts"][0]["attempts"] == 1
        assert receiver.got[0].json["run_id"] == run.id


def test_the_test_says_what_the_receiver_answered(tmp_path):
    def echo(handler):
        handler.send_response(404)
        handler.end_headers()
        handler.wfile.write(f"no hook at {handler.path}".encode())

    with webhook(PATH) as receiver, planned(tmp_path, receiver.url) as (client, _):
        answer = client.post("/alerts/test")
        assert answer.status_code == 200
        assert answer.json() | {"seconds": 0} == {
            "receiver": receiver.url.removesuffix(PATH),
            "delivered": True,
            "status": 204,
            "said": None,
            "error": None,
            "seconds": 0,
        }
        receiver.usual = echo
        answer = client.post("/alerts/test").json()
        assert (answer["delivered"], answer["status"]) == (False, 404)
        assert answer["said"] == "no hook at [hidden]"
        reads = {"Authorization": f"Bearer {READ}"}
        assert client.post("/alerts/test", headers=reads).status_code == 403
        assert len(receiver.got) == 2


def test_without_a_webhook_the_test_is_refused(tmp_path):
    with planned(tmp_path) as (client, _):
        answer = client.post("/alerts/test")
        assert (answer.status_code, answer.json()["reason"]) == (409, "conflict")
        assert "--alert-webhook-file" in answer.json()["detail"]


def test_no_answer_and_no_file_has_the_url_or_the_secret(tmp_path, capfd):
    with webhook(PATH) as receiver, planned(tmp_path, receiver.url) as (client, plane):
        receiver.usual = 500
        fail(plane)
        wait_for(lambda: client.get("/alerts").json()["alerts"][0]["attempts"])
        paths = ("/alerts", "/metrics", "/version", "/runs", "/openapi.json", "/readyz")
        texts = [client.get(path).text for path in paths]
        texts.append(client.post("/alerts/test").text)
    texts += capfd.readouterr()
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in ("T0KEN", "abcdefgh", SECRET):
        assert not any(secret in text for text in texts), secret
        assert secret.encode() not in stored


def test_the_version_is_told_to_those_with_a_token(tmp_path):
    with planned(tmp_path) as (client, plane):
        assert client.get("/version", headers={"Authorization": "x"}).status_code == 401
        answer = client.get("/version", headers={"Authorization": f"Bearer {READ}"}).json()
        newest = plane.store.schema()
        assert answer == {
            "version": version("lectern"),
            "python": platform.python_version(),
            "schema_revision": newest,
            "started_at": plane.started_at,
        }
        assert newest.isdigit() and int(newest) >= 11
