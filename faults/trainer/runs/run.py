"""A small real run: random tokens, a tiny student, a teacher of hidden states."""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.models import write_model
from faults.processes import ROOT, Launched, environment
from faults.stage import Stage
from faults.trainer.runs.forked import ForkServer
from lectern_common.json_lines import read_json_lines
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState, Status
from lectern_common.spec.load import parse_spec

STEPS = 120
SEQ_LEN = 32
SEQUENCES = 4
VOCAB_SIZE = 512
TEACHER_HIDDEN = 64

_TENSORS = "*.safetensors"

# What must be equal in two equal runs; times differ.
COMPARED = (
    *("step", "loss/ce", "loss/kd", "loss/total", "loss/val", "optim/grad_norm"),
    *("rollout/rows", "rollout/mean_length", "rollout/kd"),
)


def spec_of(**sections: dict[str, Any]) -> dict[str, Any]:
    """Returns the spec of a run on labels only, over random tokens, with fields of `sections`."""
    own: dict[str, Any] = {
        "name": "small",
        "student": {"config": "student"},
        "data": {"kind": "synthetic", "seq_len": SEQ_LEN},
        "objective": {"alpha": 1},
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"steps": STEPS, "warmup_steps": 5},
        "batch": {"sequences_per_step": SEQUENCES},
        "evaluation": {"every_steps": 40, "max_sequences": 4},
        "checkpoint": {"every_steps": 10_000},
        "device": {"kind": "cpu", "threads": 1},
    }
    return own | {name: own.get(name, {}) | fields for name, fields in sections.items()}


class Home:
    """A home folder with a student's config and a teacher; one for the whole program.

    The undisturbed run is made once, when first needed.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.path = stage.shared / "home"
        self.roots = Roots.of_home(self.path)
        self.teacher = self.path / "teacher"
        if not self.path.exists():
            write_model(
                self.roots.models / "student",
                vocab_size=VOCAB_SIZE,
                hidden=32,
                layers=1,
                weights=False,
            )
            write_model(self.teacher, vocab_size=VOCAB_SIZE, hidden=TEACHER_HIDDEN, seed=1)

    @classmethod
    def at(cls, path: Path) -> "Home":
        """Returns an existing home, on which to start trainers."""
        home = cls.__new__(cls)
        home.path, home.roots, home.teacher = path, Roots.of_home(path), path / "teacher"
        return home

    @property
    def teacher_options(self) -> tuple[str, ...]:
        return ("--model", str(self.teacher), "--threads", "1")

    def create(self, address: str, **teacher: Any) -> RunFolder:
        """Creates a distilled run's folder; `teacher` has fields of the spec's section."""
        budget = {"address": address, "outage_budget_seconds": 120, **teacher}
        return self.folder_of(teacher=budget, objective={"alpha": 0.25})

    def folder_of(self, **sections: dict[str, Any]) -> RunFolder:
        """Creates the folder of a run on labels only, with fields of `sections`."""
        run_id = f"run-{secrets.token_hex(4)}"
        return RunFolder.create(self.roots.runs, run_id, parse_spec(spec_of(**sections)))

    def undisturbed(self) -> "Ended":
        """Returns how an undisturbed run ends."""
        path = self._stage.shared / "undisturbed"
        if not path.exists():
            self._stage.say("the undisturbed run")
            folder = self._trained_in_peace()
            path.write_text(folder.run_id)
        return Ended.of(RunFolder(self.roots.runs / path.read_text()))

    def _trained_in_peace(self) -> RunFolder:
        from faults.processes import Server

        server = Server(self._stage.new_folder(), self.teacher_options, ("unmeasured",))
        try:
            folder = self.create(server.ready().address)
            subprocess.run(
                [
                    *(sys.executable, "-m", "student_trainer", str(folder.path)),
                    *("--home", str(self.path)),
                ],
                cwd=ROOT,
                env=environment(),
                check=True,
                capture_output=True,
            )
        finally:
            server.kill()
        return folder


class Ended:
    """What a run leaves: losses by step, and the tensors of its last checkpoint and export.

    Of a run with rollouts, `tensors` has the bytes of rollouts.jsonl too.
    """

    def __init__(self, lines: list[dict[str, Any]], tensors: dict[str, bytes]) -> None:
        self.lines = lines
        self.tensors = tensors

    @classmethod
    def of(cls, folder: RunFolder) -> "Ended":
        lines = [
            {key: line[key] for key in COMPARED if key in line}
            for line in read_json_lines(folder.metrics_path)
        ]
        newest = sorted(folder.checkpoints_path.glob("step-*"))[-1:]
        files = [path for part in (*newest, folder.export_path) for path in part.glob(_TENSORS)]
        tensors = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}
        if folder.rollouts_path.exists():
            tensors[folder.rollouts_path.name] = folder.rollouts_path.read_bytes()
        return cls(lines, tensors)

    def difference(self, other: "Ended") -> str:
        """Returns the first bitwise difference, or ""."""
        steps = [line["step"] for line in other.lines]
        if steps != [line["step"] for line in self.lines]:
            return f"the steps recorded are {steps[:3]}...{steps[-3:]}, {len(steps)} of them"
        for own, theirs in zip(self.lines, other.lines, strict=True):
            if own != theirs:
                return f"step {own['step']} has {json.dumps(theirs)}; expected {json.dumps(own)}"
        names = sorted(self.tensors.keys() | other.tensors.keys())
        differing = [name for name in names if self.tensors.get(name) != other.tensors.get(name)]
        return f"these files differ: {', '.join(differing)}" if differing else ""


class Trainer(Launched):
    """`python -m student_trainer` on one run.

    Args:
        forked: starts it without seconds of imports, by `server` or the stage's fork server.
        faults: injected into it; see faults/trainer/injections.py.
    """

    def __init__(
        self,
        stage: Stage,
        home: Home,
        folder: RunFolder,
        options: Sequence[str] = (),
        *,
        forked: bool = False,
        faults: Sequence[str] = (),
        server: ForkServer | None = None,
    ) -> None:
        words = (str(folder.path), "--home", str(home.path), *options)
        forks = server or stage.fork_server if forked else None
        super().__init__("trainer", stage.new_folder(), words, faults, stage.sabotage, forks)
        self.folder = folder

    @property
    def status(self) -> Status | None:
        return self.folder.read_status()

    def status_is(self, *states: RunState) -> bool:
        """Whether its status now has one of these states."""
        status = self.status
        return status is not None and status.pid == self.process.pid and status.state in states

    def wait_for_state(self, state: RunState, seconds: float) -> float | None:
        """Returns the seconds until it has this state; None as in `wait_until`."""
        return self.wait_until(lambda: self.status_is(state), seconds)

    def steps(self) -> int:
        """Returns how many steps are recorded."""
        path: Path = self.folder.metrics_path
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    def wait_until(self, condition: Callable[[], object], seconds: float) -> float | None:
        """Returns the seconds until it held, None if the trainer ended or time was up."""
        begun = time.monotonic()
        while not condition():
            if not self.alive or time.monotonic() - begun > seconds:
                return None
            time.sleep(0.005)
        return time.monotonic() - begun

    def wait_for_step(self, step: int, seconds: float) -> float | None:
        """Returns the seconds until `step` steps were recorded; None as in `wait_until`."""
        return self.wait_until(lambda: self.steps() >= step, seconds)

    def end(self) -> str:
        """Waits for the end; returns "" if it succeeded, else how it ended."""
        exit_status = self.wait(300)
        status = self.status
        if exit_status == 0 and status is not None and status.state is RunState.SUCCEEDED:
            return ""
        said = None if status is None else f"{status.state}, {status.reason}: {status.message}"
        return f"the run exited with status {exit_status}, {said}"


def events_of(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    """Returns the events of a kind that a run has recorded."""
    return [line for line in read_json_lines(folder.events_path) if line["kind"] == kind]
