"""Whole runs on tiny models: a home with data, models and spec, trained in this process."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lectern_common.json_lines import read_json_lines
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import Status
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.tokenizer_map import read_tokenizer_map, tokenizer_sha256
from student_trainer.journal.recorder import Recorder
from student_trainer.ranks.device import choose_device
from student_trainer.ranks.world import Ranks
from student_trainer.run.assemble import assemble
from student_trainer.run.assembled import Assembly
from student_trainer.run.life import live
from student_trainer.run.loop import train
from student_trainer.run.parts import RunContext
from student_trainer.stop import Stop
from tests.support.models import write_tiny_model, write_tiny_tokenizer
from tests.support.training.shards import write_shards

VOCAB_SIZE = 40


@dataclass
class Home:
    """A home folder with dataset `text` (a noisy cycle of ids) and model config `small`."""

    path: Path
    seq_len: int = 8
    runs: int = field(default=0)

    def __post_init__(self) -> None:
        draw = np.random.default_rng(0)
        tokens = np.cumsum(draw.choice([1, 2, 3], 2000, p=[0.7, 0.2, 0.1])) % VOCAB_SIZE
        write_shards(self.path / "data" / "text", tokens, vocab_size=VOCAB_SIZE, shards=2)
        self.model("small", weights=False)

    @property
    def roots(self) -> Roots:
        return Roots.of_home(self.path)

    def model(self, name: str, **settings: Any) -> Path:
        """Writes models/<name>; see write_tiny_model."""
        tiny = {"vocab_size": VOCAB_SIZE, "hidden": 16, "layers": 1}
        return write_tiny_model(self.path / "models" / name, **{**tiny, **settings})

    def tokenized(self, name: str = "bytes", vocab_size: int = 300) -> Path:
        """Writes dataset <name> with a tokenizer beside it; returns the folder."""
        folder = self.path / "data" / name
        tokenizer = write_tiny_tokenizer(folder, vocab_size)
        tokens = np.random.default_rng(1).integers(0, 257, 900)
        digest = tokenizer_sha256(read_tokenizer_map(tokenizer))
        return write_shards(folder, tokens, vocab_size=257, tokenizer_sha256=digest)

    def spec(self, name: str, **sections: Any) -> RunSpec:
        """Returns the spec of a short run on pure cross entropy, changed by `sections`."""
        spec: dict[str, Any] = {
            "name": name,
            "student": {"config": "small"},
            "data": {"path": "text", "seq_len": self.seq_len, "validation_fraction": 0.1},
            "objective": {"alpha": 1},
            "optimizer": {"learning_rate": 1e-2},
            "schedule": {"steps": 6, "warmup_steps": 2},
            "batch": {"sequences_per_step": 4},
            "evaluation": {"every_steps": 3},
            "checkpoint": {"every_steps": 2},
            "device": {"kind": "cpu", "threads": 1},
        }
        for section, values in sections.items():
            merge = isinstance(values, dict) and section in spec
            spec[section] = {**spec[section], **values} if merge else values
        return parse_spec(spec)

    def run(self, name: str | None = None, **sections: Any) -> RunFolder:
        """Makes a run folder with such a spec."""
        self.runs += 1
        name = name or f"run-{self.runs}"
        return RunFolder.create(self.roots.runs, name, self.spec(name, **sections))


def trained(
    home: Home, folder: RunFolder, *, resume: bool = False, stop: Stop | None = None
) -> int:
    """Trains in this process, like `python -m student_trainer`; returns the exit status."""
    stop = stop or Stop()
    with folder.locked(), Recorder(folder, stop) as recorder:
        return live(folder, home.roots, recorder, stop, resume=resume)


@contextmanager
def assembled(
    home: Home, folder: RunFolder, *, resume: bool = False, steps: int | None = None
) -> Iterator[Assembly]:
    """Yields the assembled run; with `steps`, trained for its steps first."""
    stop = Stop()
    with folder.locked(), Recorder(folder, stop) as recorder, ExitStack() as stack:
        spec = folder.read_spec()
        device = choose_device(spec.device.kind)
        context = RunContext(spec, home.roots, folder, device, Ranks(), recorder, stop, stack)
        run = assemble(context, resume=resume)
        recorder.open_metrics([], run.progress.step)
        if steps is not None:
            train(run.parts, run.settings, run.progress)
        yield run


def status_of(folder: RunFolder) -> Status:
    status = folder.read_status()
    assert status is not None
    return status


def lines_of(folder: RunFolder) -> list[dict[str, Any]]:
    return read_json_lines(folder.metrics_path)


def curve(folder: RunFolder, key: str) -> list[float]:
    return [line[key] for line in lines_of(folder) if key in line]


def events_of(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_json_lines(folder.events_path) if line["kind"] == kind]


# What must be equal in two runs of the same spec; times differ.
COMPARED = ("step", "loss/ce", "loss/kd", "loss/total", "loss/val", "optim/grad_norm")


def compared(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: line[key] for key in COMPARED if key in line} for line in lines_of(folder)]
