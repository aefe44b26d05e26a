"""`lectern runs logs --follow`, `set` and `history` against a real control plane."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lectern.client import Client
from lectern.local.processes import Child, wait_until
from lectern_common.run.status import RunState
from tests.lectern.commands.runs.test_runs import GOES_ON, SUCCEEDS, write_spec

DEADLINE_SECONDS = 60.0


class Plane:
    """A control plane that can be killed and started again at the same address."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._bind = "127.0.0.1:0"
        self.child: Child | None = None

    def start(self) -> None:
        port_file = self._home / "port"
        port_file.unlink(missing_ok=True)
        options = ["--bind", self._bind, "--port-file", str(port_file), "--home", str(self._home)]
        options.append("--no-fork-server")
        child = self.child = Child(
            "control plane",
            [sys.executable, "-m", "control_plane", *options],
            self._home / "control-plane.log",
            {},
        )
        assert wait_until(lambda: port_file.exists() or not child.is_alive, DEADLINE_SECONDS)
        assert child.is_alive, child.tail()
        self._bind = port_file.read_text().strip()

    @property
    def url(self) -> str:
        return f"http://{self._bind}"

    def kill(self) -> None:
        assert self.child is not None
        self.child.signal(signal.SIGKILL)
        self.child.stop(DEADLINE_SECONDS)


@pytest.fixture
def plane(tmp_path, stand_in_trainer, monkeypatch) -> Iterator[Plane]:
    monkeypatch.setenv("LECTERN_HOME", str(tmp_path))
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/config.json").write_text(json.dumps({"vocab_size": 8}))
    plane = Plane(tmp_path)
    plane.start()
    try:
        yield plane
    finally:
        with Client(plane.url) as service:
            for run in service.list_runs():
                if not run.rests:
                    service.stop_run(run.id)
            service.wait([run.id for run in service.list_runs()], timeout_seconds=DEADLINE_SECONDS)
        assert plane.child is not None
        plane.child.stop(DEADLINE_SECONDS)


@pytest.mark.long
def test_a_followed_log_outlives_a_killed_control_plane_and_ends_with_the_run(
    lectern, plane, tmp_path
):
    def runs(*words: object) -> Any:
        return lectern("runs", *words, "--url", plane.url)

    run_id = runs("create", write_spec(tmp_path, GOES_ON)).out.strip()
    path = tmp_path / "runs" / run_id / "trainer.log"
    with Client(plane.url) as service:
        at_work = lambda: service.get_run(run_id).state is RunState.RUNNING  # noqa: E731
        assert wait_until(at_work, DEADLINE_SECONDS)

    def write(text: str) -> None:
        with path.open("a") as log:
            log.write(text)

    write("first\n")
    words = ["logs", run_id, "--follow", "--tail", "1", "--url", plane.url]
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as told, err.open("wb") as said:
        command = [sys.executable, "-m", "lectern", "runs", *words]
        following = subprocess.Popen(command, stdout=told, stderr=said)
    try:
        assert wait_until(lambda: out.read_text() == "first\n", DEADLINE_SECONDS), err.read_text()
        write("second\x1b[31m\nthi")
        assert wait_until(lambda: "second\n" in out.read_text(), DEADLINE_SECONDS)
        plane.kill()
        write("rd\nwhile it is away\n")
        assert wait_until(lambda: "trying again" in err.read_text(), DEADLINE_SECONDS)
        assert following.poll() is None
        plane.start()
        assert wait_until(lambda: "is away\n" in out.read_text(), DEADLINE_SECONDS)
        write("last word")
        runs("stop", run_id, "--wait")
        assert following.wait(DEADLINE_SECONDS) == 0
    finally:
        if following.poll() is None:
            os.kill(following.pid, signal.SIGKILL)
            following.wait()
    assert out.read_text() == "first\nsecond\nthird\nwhile it is away\nlast word"
    assert "the control plane answers again" in err.read_text()
    again = runs("logs", run_id, "--follow", "--tail", "2")
    assert (again.code, again.out) == (0, "third\nwhile it is away\nlast word")


def test_following_what_cannot_be_followed_is_refused(runs):
    missing = runs("logs", "no-such-run", "--follow")
    assert (missing.code, missing.err) == (3, "error: no run no-such-run\n")
    both = runs("logs", "no-such-run", "--follow", "--json")
    assert (both.code, "--follow" in both.err) == (2, True)


def test_labels_are_set_listed_and_cleared(runs, tmp_path):
    first = runs("create", write_spec(tmp_path, SUCCEEDS), "--watch").out.split()[0]
    second = runs("create", write_spec(tmp_path, SUCCEEDS), "--watch").out.split()[0]
    words = ("--priority", "-5", "--group", "g-1", "--tag", "a", "--tag", "b", "--notes", "see b")
    assert runs("set", first, *words).out == (
        f"{first}  priority -5, group 'g-1', tags ['a', 'b'], notes 'see b'\n"
    )
    some = runs("set", "no-such-run", second, "--tag", "b", "--json")
    assert some.code == 3
    assert [(run["id"], run["tags"]) for run in some.json] == [(second, ["b"])]

    def listed(*filters: str) -> list[str]:
        return [run["id"] for run in runs("list", *filters, "--json").json]

    assert listed("--tag", "b") == [second, first]
    assert listed("--tag", "b", "--tag", "a") == listed("--group", "g-1") == [first]
    assert listed("--group", "g-1", "--tag", "a", "--state", "failed") == []
    nothing = runs("list", "--group", "g-1", "--tag", "c", "--state", "failed")
    assert nothing.err == "no run is failed and is in group g-1 and has the tag c\n"
    cleared = runs("set", first, "--no-group", "--no-tags", "--notes", "")
    assert cleared.out == f"{first}  notes '', group None, tags []\n"
    assert listed("--group", "g-1") == []
    shown = runs("show", first, "--json").json
    assert (shown["priority"], shown["group"], shown["tags"], shown["notes"]) == (-5, None, [], "")


def test_labels_that_cannot_be_set_are_refused(runs, tmp_path):
    run_id = runs("create", write_spec(tmp_path, SUCCEEDS), "--watch").out.split()[0]
    for words, said in (
        ((), "set at least one"),
        (("--group", "g", "--no-group"), "no effect beside --group"),
        (("--tag", "a", "--no-tags"), "no effect beside --tag"),
        (("--priority", "200"), "error: priority: "),
        (("--group", "A B"), "error: group: must be lower-case"),
        (("--tag", "a,b"), "error: tags.0: "),
    ):
        refused = runs("set", run_id, *words)
        assert refused.code == 2, words
        assert said in " ".join(refused.err.replace("\u2502", " ").split())


def test_the_history_says_who_asked(runs, url, tmp_path):
    run_id = runs("create", write_spec(tmp_path, GOES_ON)).out.strip()
    with Client(url) as service:
        at_work = lambda: service.get_run(run_id).state is RunState.RUNNING  # noqa: E731
        assert wait_until(at_work, DEADLINE_SECONDS)
    runs("stop", run_id, "--wait")
    lines = runs("history", run_id).out.splitlines()
    by = r"by lectern/\S+ \(\S+@\S+\) from 127\.0\.0\.1, full token"
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert re.fullmatch(rf"{stamp}queued +{by}", lines[0]), lines
    assert re.fullmatch(rf"{stamp}starting", lines[1]), lines
    asked = [line for line in lines if " by " in line]
    assert len(asked) == 2
    assert re.fullmatch(rf"{stamp}stopp\w+ +stopped; {by}", asked[1]), lines
    entries = runs("history", run_id, "--json", "--limit", "1").json["entries"]
    assert [entry["state"] for entry in entries] == ["stopped"]
