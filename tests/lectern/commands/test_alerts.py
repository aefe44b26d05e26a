"""`lectern alerts` against a real control plane, its webhook, and a kill in the middle."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import control_plane.__main__ as control_plane
from lectern.client import Client
from lectern.local.processes import Child, wait_until
from tests.lectern.commands.runs.test_runs import FAILS, SUCCEEDS, write_spec
from tests.support.webhook import Webhook, webhook

DEADLINE_SECONDS = 60.0
SECRET = "a-secret-of-these-tests"
TOKEN = "T0KEN-of-the-path"


@contextmanager
def serving(home: Path, *options: str) -> Iterator[tuple[str, Child]]:
    """Yields the address and the process of a control plane; ends it if it lives."""
    port_file = home / "port"
    port_file.unlink(missing_ok=True)
    words = ["--bind", "127.0.0.1:0", "--port-file", str(port_file), "--home", str(home)]
    child = Child(
        "control plane",
        [sys.executable, "-m", "control_plane", *words, "--no-fork-server", *options],
        home / "control-plane.log",
        {},
    )
    try:
        assert wait_until(lambda: port_file.exists() or not child.is_alive, DEADLINE_SECONDS)
        assert child.is_alive, child.tail()
        yield f"http://{port_file.read_text().strip()}", child
    finally:
        child.stop(DEADLINE_SECONDS)


@pytest.fixture
def home(tmp_path, stand_in_trainer, monkeypatch):
    monkeypatch.setenv("LECTERN_HOME", str(tmp_path))
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/config.json").write_text(json.dumps({"vocab_size": 8}))
    return tmp_path


@pytest.fixture
def receiver(home) -> Iterator[Webhook]:
    with webhook(f"/services/{TOKEN}") as receiver:
        write_secret(home, f"{receiver.url}\n{SECRET}\n")
        yield receiver


def write_secret(home: Path, text: str) -> None:
    (home / "secrets").mkdir(exist_ok=True)
    (home / "secrets" / "alerts").write_text(text)


WITH_WEBHOOK = ("--alert-webhook-file", "alerts")


def ends(lectern, home: Path, url: str, how: int) -> str:
    """Returns the id of a run that has ended in this way."""
    return str(
        lectern("runs", "create", write_spec(home, how), "--watch", "--url", url).out.split()[0]
    )


def test_alerts_are_shown_and_delivered_and_a_test_says_what_was_answered(lectern, home, receiver):
    with serving(home, *WITH_WEBHOOK) as (url, _):
        assert "no alerts yet" in lectern("alerts", "--url", url).err
        finished = ends(lectern, home, url, SUCCEEDS)
        failed = ends(lectern, home, url, FAILS)
        shown = lectern("alerts", "--url", url)
        assert shown.code == 0
        first, second = shown.out.splitlines()
        assert f"finished  {finished} finished after 3 steps" in first
        assert f"diverged  {failed} diverged at step" in second
        as_json = json.loads(lectern("alerts", "--json", "--limit", "1", "--url", url).out)
        assert [alert["run_id"] for alert in as_json] == [failed]
        assert wait_until(lambda: len(receiver.got) == 2, DEADLINE_SECONDS)
        kinds = {got.json["kind"]: got.json for got in receiver.got}
        assert kinds["diverged"]["url"] == f"{url}/#/runs/{failed}"
        with Client(url) as service:
            assert wait_until(
                lambda: all(alert.delivered_at for alert in service.alerts()), DEADLINE_SECONDS
            )

        done = lectern("alerts", "test", "--url", url)
        assert (done.code, done.out.split(":")[0]) == (0, "delivered")
        receiver.usual = 403
        done = lectern("alerts", "test", "--url", url)
        assert done.code == 1
        assert "not delivered: http://127.0.0.1" in done.err and "403 Forbidden" in done.err
        done = lectern("alerts", "test", "--json", "--url", url)
        assert (done.code, json.loads(done.out)["delivered"]) == (1, False)
    log = (home / "control-plane.log").read_text()
    assert "alert delivered" in log and TOKEN not in log and SECRET not in log


@pytest.mark.long
def test_a_control_plane_that_is_killed_delivers_after_its_restart(lectern, home, receiver):
    receiver.usual = receiver.hangs
    with serving(home, *WITH_WEBHOOK) as (url, child):
        run_id = ends(lectern, home, url, FAILS)
        assert wait_until(lambda: receiver.got, DEADLINE_SECONDS)
        child.process.kill()
        assert wait_until(lambda: not child.is_alive, DEADLINE_SECONDS)
    receiver.usual = 200
    with serving(home, *WITH_WEBHOOK) as (url, _), Client(url) as service:
        assert wait_until(
            lambda: all(alert.delivered_at for alert in service.alerts()), DEADLINE_SECONDS
        )
        assert [alert.run_id for alert in service.alerts()] == [run_id]
    first, second = receiver.got
    assert first.json["run_id"] == second.json["run_id"] == run_id
    assert first.headers["lectern-delivery"] == second.headers["lectern-delivery"]


def test_without_a_webhook_the_test_says_what_to_set_and_new_alerts_follow(lectern, home):
    with serving(home) as (url, _):
        done = lectern("alerts", "test", "--url", url)
        assert done.code == 4
        assert "--alert-webhook-file" in done.err
        words = ["alerts", "--follow", "--json", "--url", url]
        with subprocess.Popen(
            [sys.executable, "-m", "lectern", *words], stdout=subprocess.PIPE, text=True
        ) as follower:
            run_id = ends(lectern, home, url, SUCCEEDS)
            assert follower.stdout is not None
            alert = json.loads(follower.stdout.readline())
            follower.send_signal(signal.SIGINT)
    assert (alert["run_id"], alert["kind"]) == (run_id, "finished")


@pytest.mark.parametrize("text", ["", "no url", f"https://h/{TOKEN}\nshort"])
def test_a_file_of_another_form_stops_the_start(lectern: Callable, capsys, home, text):
    write_secret(home, text)
    words = ["--home", str(home), "--bind", "127.0.0.1:0", *WITH_WEBHOOK]
    assert control_plane.main(words) == 2
    said = capsys.readouterr().err
    assert "--alert-webhook-file alerts" in said and TOKEN not in said
    up = lectern("up", "--engine", "fixture", *WITH_WEBHOOK)
    assert (up.code, "--alert-webhook-file alerts" in up.err) == (2, True)
