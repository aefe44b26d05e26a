"""Stand-ins for the three processes, which `python -m` finds before the real ones."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lectern.__main__ import main

# Ready once the port file is written; --model selects how it fails ("dies-later": once the file
# $STAND_IN_DIES exists).
_TEACHER_SERVER = """
import os, signal, sys, time
from pathlib import Path

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("started with", *sys.argv[1:])
print("models are in", os.environ["LECTERN_MODELS_ROOT"])
if options.get("--model") == "dies-at-start":
    print("no such model")
    raise SystemExit(3)

def end(*_):
    print("teacher ended")
    sys.stdout.flush()
    os._exit(0)

signal.signal(signal.SIGTERM, end)
if options.get("--model") != "never-ready":
    Path(options["--port-file"]).write_text("127.0.0.1:50001\\n")
while options.get("--model") != "dies-later" or not os.path.exists(os.environ["STAND_IN_DIES"]):
    time.sleep(0.02)
print("out of memory")
raise SystemExit(1)
"""

_CONTROL_PLANE = """
import os, signal, sys, time
from pathlib import Path

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("started with", *sys.argv[1:])

def end(*_):
    print("runs checkpointed")
    sys.stdout.flush()
    os._exit(0)

signal.signal(signal.SIGTERM, end)
Path(options["--port-file"]).write_text("127.0.0.1:8001\\n")
while True:
    time.sleep(0.02)
"""

# The spec's seed selects how it ends: 0 succeeds, 1 fails, 2 trains until it is stopped, 3 dies by
# a signal, 4 dies without writing a status, 5 is interrupted.
_STUDENT_TRAINER = """
import dataclasses, os, signal, sys, time
from pathlib import Path
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import (RunState, Status)
from lectern_common.json_lines import append_json_line

folder = RunFolder(Path(sys.argv[1]))
spec = folder.read_spec()
print("started with", *sys.argv[1:])
if spec.seed == 4:
    print("ImportError: no torch here")
    raise SystemExit(1)
now = time.time()
status = Status(folder.run_id, RunState.RUNNING, now, now, os.getpid(), steps=3, stops_at="end")

def say(state, step, reason=None, message=None):
    folder.write_status(dataclasses.replace(
        status, state=state, step=step, reason=reason, message=message))

def stop(*_):
    say(RunState.STOPPED, 2, "stopped", "stopped on request")
    os._exit(0)

def stop_at_checkpoint(*_):
    say(RunState.STOPPED, 3, "stopped", "stopped at the checkpoint of step 3, as asked")
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop_at_checkpoint)
for step in (1, 2, 3):
    append_json_line(folder.metrics_path, {"step": step, "loss/total": 4.0 - step})
    say(RunState.RUNNING, step)
if spec.seed == 1:
    say(RunState.FAILED, 3, "diverged", "the loss is not finite")
    raise SystemExit(1)
while spec.seed == 2:
    time.sleep(0.02)
if spec.seed == 3:
    os.kill(os.getpid(), signal.SIGKILL)
if spec.seed == 5:
    say(RunState.INTERRUPTED, 3, "teacher_unavailable", "the teacher is gone")
    raise SystemExit(75)
folder.export_path.mkdir(exist_ok=True)
say(RunState.SUCCEEDED, 3)
"""


def write_stand_in_trainer(folder: Path) -> Path:
    """Writes the stand-in trainer; returns the folder, to be put before the real package's."""
    (folder / "student_trainer.py").write_text(_STUDENT_TRAINER)
    return folder


@pytest.fixture
def stand_in_trainer(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Path:
    """Puts only the stand-in trainer before the real package, for child processes."""
    folder = write_stand_in_trainer(tmp_path_factory.mktemp("stand-ins"))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def stand_ins(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> Path:
    """Puts the stand-ins before the real packages, for child processes; returns their folder."""
    folder = tmp_path_factory.mktemp("stand-ins")
    (folder / "teacher_server.py").write_text(_TEACHER_SERVER)
    (folder / "control_plane.py").write_text(_CONTROL_PLANE)
    (folder / "student_trainer.py").write_text(_STUDENT_TRAINER)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def lectern(monkeypatch, capsys) -> Callable[..., Ended]:
    """Returns a function that runs the command line in this process."""
    for name in [name for name in os.environ if name.startswith("LECTERN_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lectern", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        code = ended.value.code
        return Ended(0 if code is None else int(code), said.out, said.err)

    return run
