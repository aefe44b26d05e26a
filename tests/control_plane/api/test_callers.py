"""Who asked for a change stands in its history; what the plane does by itself has nobody."""

import pytest

from control_plane.runs.callers import MAX_CLIENT, MAX_OUR_CLIENT, caller, calling, described
from tests.control_plane.api.test_routes import started
from tests.control_plane.conftest import serving, spec_body, wait_for

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize(
    ("client", "address", "from_page", "token", "text"),
    [
        ("curl/8.5", "10.0.0.7", False, "full", "curl/8.5 from 10.0.0.7, full token"),
        ("curl/8.5", "::1", False, None, "curl/8.5 from ::1, no token"),
        ("Mozilla/5.0 (X11)", "127.0.0.1", True, "full", "page from 127.0.0.1, full token"),
        ("", "127.0.0.1", False, None, "a client without a name from 127.0.0.1, no token"),
        (
            "\x1b\t\x00",
            None,
            False,
            None,
            "a client without a name from an unknown address, no token",
        ),
        ("a\x1b[31m\nb\x85\xad", "1.2.3.4", False, None, "a[31mb from 1.2.3.4, no token"),
        ("<b>x</b>", "bad\n\x1b[1m", False, None, r"<b>x</b> from bad\n\x1b[1m, no token"),
        ("lectern/1.2 (ann@box)", "h", False, "full", "lectern/1.2 (ann@box) from h, full token"),
    ],
)
def test_a_caller_is_told_in_one_printable_line(client, address, from_page, token, text):
    assert described(client, address, from_page=from_page, token=token) == text


def test_long_names_are_cut():
    long = described("x" * 500, "a" * 500, from_page=False, token=None)
    assert long == f"{'x' * MAX_CLIENT} from {'a' * 60}, no token"
    ours = described("lectern/" + "x" * 500, "h", from_page=False, token=None)
    assert len(ours.partition(" from ")[0]) == MAX_OUR_CLIENT


def test_a_caller_is_forgotten_at_the_end():
    with calling("a"):
        with calling("b"):
            assert caller() == "b"
        assert caller() == "a"
    assert caller() is None


def states(client, run_id: str, **headers) -> list[tuple[str, str | None]]:
    page = client.get(f"/runs/{run_id}/history", params={"kind": "state"}, headers=headers).json()
    return [(entry["state"], entry["by"]) for entry in page["entries"]][::-1]


def test_the_history_says_who_asked_and_nothing_of_what_nobody_asked_for(client, processes):
    run = started(client, processes)
    client.post(f"/runs/{run['id']}/stop", headers={"user-agent": "curl/8.5"})
    wait_for(lambda: processes.last(run["id"]).terminated)
    processes.last(run["id"]).say("stopped", step=4, checkpoint_step=4)
    processes.last(run["id"]).end(0)
    wait_for(lambda: client.get(f"/runs/{run['id']}").json()["state"] == "stopped")
    client.post(f"/runs/{run['id']}/resume", headers={"sec-fetch-site": "same-origin"})
    wait_for(lambda: client.get(f"/runs/{run['id']}").json()["state"] == "starting")
    test_client = "testclient from testclient, no token"
    expected = [
        ("queued", test_client),
        ("starting", None),
        ("running", None),
        ("stopping", "curl/8.5 from testclient, no token"),
        ("stopped", None),
        ("queued", "page from testclient, no token"),
        ("starting", None),
    ]
    assert states(client, run["id"]) == expected
    detail = client.get(f"/runs/{run['id']}").json()["history"]
    assert [entry["by"] for entry in detail if entry["kind"] == "state"] == [
        by for _, by in expected
    ]


def test_the_token_is_named_and_never_shown(tmp_path):
    bearer = {"authorization": f"Bearer {TOKEN}"}
    with serving(tmp_path, token=TOKEN) as (client, _):
        headers = {**bearer, "origin": "http://127.0.0.1", "user-agent": "Mozilla/5.0"}
        run = client.post("/runs", json=spec_body(), headers=headers).json()
        history = client.get(f"/runs/{run['id']}/history", headers=bearer)
        assert history.json()["entries"][-1]["by"] == "page from testclient, full token"
        assert TOKEN not in history.text
