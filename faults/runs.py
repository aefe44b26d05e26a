"""A small real run: random tokens, a tiny student, a teacher that gives hidden states."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from faults.models import write_model
from faults.processes import ROOT, Launched, environment
from faults.stage import Stage
from lectern_common.roots import Roots
from lectern_common.run_folder import RunFolder, RunState, Status, read_json_lines
from lectern_common.run_spec import parse_spec

STEPS = 120
SEQ_LEN = 32
SEQUENCES = 4
VOCAB_SIZE = 512
TEACHER_HIDDEN = 64

# What must be the same in two runs of the same thing; times differ.
COMPARED = ("step", "loss/ce", "loss/kd", "loss/total", "loss/val", "optim/grad_norm")


class Home:
    """A home folder with a student's config and a teacher; one for the whole program.

    The run that nothing happens to is made once, when it is first asked for.
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

    @property
    def teacher_options(self) -> tuple[str, ...]:
        return ("--model", str(self.teacher), "--threads", "1")

    def create(self, address: str, **teacher: Any) -> RunFolder:
        """Makes the folder of a run; `teacher` are fields of the spec's section."""
        existing = len(list(self.roots.runs.glob("run-*")))
        spec = {
            "name": "small",
            "teacher": {"address": address, "outage_budget_seconds": 120, **teacher},
            "student": {"config": "student"},
            "data": {"kind": "synthetic", "seq_len": SEQ_LEN},
            "objective": {"alpha": 0.25},
            "optimizer": {"learning_rate": 1e-2},
            "schedule": {"steps": STEPS, "warmup_steps": 5},
            "batch": {"sequences_per_step": SEQUENCES},
            "evaluation": {"every_steps": 40, "max_sequences": 4},
            "checkpoint": {"every_steps": 10_000},
            "device": {"kind": "cpu", "threads": 1},
        }
        return RunFolder.create(self.roots.runs, f"run-{existing}", parse_spec(spec))

    def undisturbed(self) -> "Ended":
        """Returns how a run ends that nothing happens to."""
        path = self._stage.shared / "undisturbed"
        if not path.exists():
            self._stage.say("the run that nothing happens to")
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
    """What a run leaves: its losses by step and its last weights."""

    def __init__(self, lines: list[dict[str, Any]], weights: bytes) -> None:
        self.lines = lines
        self.weights = weights

    @classmethod
    def of(cls, folder: RunFolder) -> "Ended":
        lines = [
            {key: line[key] for key in COMPARED if key in line}
            for line in read_json_lines(folder.metrics_path)
        ]
        newest = sorted(folder.checkpoints_path.glob("step-*"))[-1:]
        weights = (newest[0] / "model.safetensors").read_bytes() if newest else b""
        return cls(lines, weights)

    def difference(self, other: "Ended") -> str:
        """Returns what is not the same in both, to the bit; "" where nothing is."""
        steps = [line["step"] for line in other.lines]
        if steps != [line["step"] for line in self.lines]:
            return f"the steps recorded are {steps[:3]}...{steps[-3:]}, {len(steps)} of them"
        for own, theirs in zip(self.lines, other.lines, strict=True):
            if own != theirs:
                return f"step {own['step']} has {json.dumps(theirs)}, not {json.dumps(own)}"
        return "" if self.weights == other.weights else "the last weights differ"


class Trainer(Launched):
    """`python -m student_trainer` on one run."""

    def __init__(
        self, stage: Stage, home: Home, folder: RunFolder, options: Sequence[str] = ()
    ) -> None:
        words = (str(folder.path), "--home", str(home.path), *options)
        super().__init__("trainer", stage.new_folder(), words, (), stage.sabotage)
        self.folder = folder

    @property
    def status(self) -> Status | None:
        return self.folder.read_status()

    def steps(self) -> int:
        """Returns how many steps are recorded."""
        path: Path = self.folder.metrics_path
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    def wait_until(self, condition: Callable[[], object], seconds: float) -> float | None:
        """Returns the seconds until it held, None where the trainer ended or time was up."""
        begun = time.monotonic()
        while not condition():
            if not self.alive or time.monotonic() - begun > seconds:
                return None
            time.sleep(0.005)
        return time.monotonic() - begun

    def wait_for_step(self, step: int, seconds: float) -> float | None:
        """Returns the seconds until so many steps were recorded; None as `wait_until`."""
        return self.wait_until(lambda: self.steps() >= step, seconds)

    def end(self) -> str:
        """Returns "" where it succeeds, else how it ended."""
        exit_status = self.wait(300)
        status = self.status
        if exit_status == 0 and status is not None and status.state is RunState.SUCCEEDED:
            return ""
        said = None if status is None else f"{status.state}, {status.reason}: {status.message}"
        return f"the run ended with status {exit_status}, {said}"
