"""One control plane for the tests of a file, whose trainers are stand-ins."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lectern.client import Client
from lectern.local.processes import Child, wait_until
from tests.lectern.conftest import write_stand_in_trainer

DEADLINE_SECONDS = 60.0
_CONTROL_PLANE = """
import json, sys
from control_plane.__main__ import main
sys.exit(main(sys.argv[2:], *json.loads(sys.argv[1])))
"""
# Imports once what the stand-in needs, and forks.
_FORK_SERVER = """
import runpy, sys
import lectern_common.json_lines, lectern_common.run.folder, lectern_common.run.status
from student_trainer.run import fork_server

script, *words = sys.argv[1:]

def train():
    runpy.run_path(script, run_name="__main__")
    return 0

fork_server.main(words, train, load=lambda: None)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The home and the address of a control plane."""
    home = tmp_path_factory.mktemp("home")
    (home / "models/tiny").mkdir(parents=True)
    (home / "models/tiny/config.json").write_text(json.dumps({"vocab_size": 8}))
    folder = write_stand_in_trainer(tmp_path_factory.mktemp("stand-ins"))
    trainer = str(folder / "student_trainer.py")
    forks = [[sys.executable, trainer], [sys.executable, "-c", _FORK_SERVER, trainer]]
    port_file = home / "port"
    options = ["--bind", "127.0.0.1:0", "--port-file", str(port_file), "--on-exit", "stop"]
    child = Child(
        "control plane",
        [sys.executable, "-c", _CONTROL_PLANE, json.dumps(forks), *options, "--home", str(home)],
        home / "control-plane.log",
        {},
    )
    try:
        assert wait_until(lambda: port_file.exists() or not child.is_alive, DEADLINE_SECONDS)
        assert child.is_alive, child.tail()
        yield home, f"http://{port_file.read_text().strip()}"
    finally:
        child.stop(DEADLINE_SECONDS)


@pytest.fixture
def home(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its home, where commands find its token."""
    monkeypatch.setenv("LECTERN_HOME", str(served[0]))
    return served[0]


@pytest.fixture
def url(served: tuple[Path, str], home: Path) -> Iterator[str]:
    """Its address; whatever a test leaves behind is deleted after it."""
    yield served[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LECTERN_HOME", str(home))
        patch.delenv("LECTERN_TOKEN", raising=False)
        with Client(served[1]) as service:
            runs = list(service.list_runs())
            for run in runs:
                if not run.rests:
                    service.stop_run(run.id)
            service.wait([run.id for run in runs], timeout_seconds=DEADLINE_SECONDS)
            for run in runs:
                service.delete_run(run.id)
            for sweep in service.sweeps():
                service.delete_sweep(sweep.id)


@pytest.fixture
def runs(lectern: Callable[..., Any], url: str) -> Callable[..., Any]:
    """Returns a function that runs `lectern runs ...` against the control plane."""
    return lambda *words: lectern("runs", *words, "--url", url)
