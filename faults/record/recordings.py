"""A small dataset to record, tasks that record it, and runs that learn from the record."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from faults.processes import Launched, Server, wait_for
from faults.stage import Stage
from faults.trainer.runs.forked import ForkServer
from faults.trainer.runs.run import SEQ_LEN, VOCAB_SIZE, Ended, Home, Trainer, spec_of
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec
from lectern_common.stages.folder import TaskFolder

_TOKENS = 6_000
_TEACHER_FAULTS = ("unmeasured", "slow-model=0.01")
DATASET = "tokens"


class Records:
    """A home whose teacher is recorded over a dataset of its own.

    Args:
        stage: of the row.
        home: with the student and the teacher.
        root: another home folder to record in, such as one on a small disk; None means the home.
        server: starts tasks and trainers; None means the stage's.
    """

    def __init__(
        self,
        stage: Stage,
        home: Home,
        root: Path | None = None,
        server: ForkServer | None = None,
    ) -> None:
        self.stage, self.home, self.server = stage, home, server
        self.root = stage.new_folder() if root is None else root
        shutil.copytree(home.roots.models, self.root / "models", dirs_exist_ok=True)
        _write_dataset(self.root / "data" / DATASET)

    @property
    def data(self) -> Path:
        return self.root / "data"

    def spec(self, teacher: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
        """Returns the spec of a run on the dataset: a little more than an epoch."""
        own: dict[str, dict[str, Any]] = {
            "data": {"kind": "shards", "path": DATASET, "validation_fraction": 0.1},
            "objective": {"alpha": 0.25},
            "schedule": {"steps": 45},
            "evaluation": {"every_steps": 15},
            "checkpoint": {"every_steps": 5},
            "teacher": teacher,
        }
        return spec_of(**{**own, **{name: own.get(name, {}) | sections[name] for name in sections}})

    def task(self, address: str, name: str) -> TaskFolder:
        """Returns a new task that records the teacher at an address as `name`."""
        teacher = {"address": address, "outage_budget_seconds": 3}
        spec = parse_spec(self.spec(teacher)).model_dump(mode="json")
        path = self.stage.new_folder() / "task"
        return TaskFolder.create(path, "precompute", {"spec": spec, "output": name, "options": {}})

    def start(self, task: TaskFolder, *faults: str) -> "Recorder":
        """Starts the process of a task, or starts it again."""
        return Recorder(self, task, faults)

    def made(self, address: str, name: str) -> Path:
        """Returns the folder of a record, made in peace. Raises RuntimeError if it is not."""
        recorder = self.start(self.task(address, name))
        try:
            code = recorder.wait(300)
        finally:
            recorder.kill()
        if code != 0:
            raise RuntimeError(f"no record was made: {recorder.log[-2000:]}")
        return self.data / name

    def run(self, teacher: dict[str, Any], **sections: dict[str, Any]) -> RunFolder:
        """Creates the folder of a run."""
        spec = parse_spec(self.spec(teacher, **sections))
        number = len(list(self.root.glob("runs/*")))
        return RunFolder.create(self.root / "runs", f"run-{number}", spec)

    def trainer(self, folder: RunFolder, *options: str, faults: Sequence[str] = ()) -> Trainer:
        home = Home.at(self.root)
        return Trainer(
            self.stage, home, folder, options, forked=True, faults=faults, server=self.server
        )

    def ended(self, folder: RunFolder) -> Ended:
        """Trains a run in peace, and returns how it ended. Raises RuntimeError if it failed."""
        trainer = self.trainer(folder)
        try:
            problem = trainer.end()
        finally:
            trainer.kill()
        if problem:
            raise RuntimeError(f"{problem}\n{trainer.log[-2000:]}")
        return Ended.of(folder)


class Recorder(Launched):
    """`python -m student_trainer precompute` on one task."""

    def __init__(self, records: Records, task: TaskFolder, faults: Sequence[str]) -> None:
        stage = records.stage
        words = ("precompute", str(task.path), "--home", str(records.root))
        forks = records.server or stage.fork_server
        super().__init__("trainer", stage.new_folder(), words, faults, stage.sabotage, forks)
        self.task = task
        name = task.read_asked()[1]["output"]
        self._rows = records.data / f".{name}.recording" / "record" / "training" / "rows.bin"

    @property
    def bytes_of_rows(self) -> int:
        """How much of the first part's rows is on the disk."""
        return self._rows.stat().st_size if self._rows.exists() else 0

    def wait_for_rows(self, num_bytes: int, seconds: float = 60) -> bool:
        """Waits until so much of the rows is on the disk; False if it ends before."""
        wait_for(lambda: self.bytes_of_rows >= num_bytes or not self.alive, seconds)
        return self.alive

    def end(self) -> str:
        """Waits for the end; returns "" if it succeeded, else how it ended."""
        code = self.wait(300)
        return "" if code == 0 else f"it exited with status {code}: {self.said}"

    @property
    def said(self) -> str:
        """Its last state, reason and message."""
        status = self.task.read_status()
        return "" if status is None else f"{status.state}, {status.reason}: {status.message}"


@contextmanager
def served(stage: Stage, home: Home) -> Iterator[Server]:
    """Yields a slow teacher server, ready; it is started through the fork server."""
    server = started(stage, home)
    try:
        yield server
    finally:
        server.kill()


def started(stage: Stage, home: Home, address: str | None = None) -> Server:
    """Returns a slow teacher server, ready, at an address if that is given."""
    bind = () if address is None else ("--bind", address)
    server = Server(
        stage.new_folder(),
        (*bind, *home.teacher_options),
        _TEACHER_FAULTS,
        stage.sabotage,
        fork_server=stage.fork_server,
    )
    return server.ready()


def hashes_of(record: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a record, by its path; {} if there is no record."""
    return {
        str(path.relative_to(record)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(record.rglob("*"))
        if path.is_file()
    }


def difference(record: Path, expected: dict[str, str]) -> str:
    """Returns which files of a record are not the expected ones, or ""."""
    found = hashes_of(record)
    differing = sorted(
        path for path in {*found, *expected} if found.get(path) != expected.get(path)
    )
    return f"{record.name} differs in {', '.join(differing)}" if differing else ""


def _write_dataset(folder: Path) -> None:
    """Writes token shards by hand: random tokens, and some of them twice."""
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, _TOKENS).astype("<u4")
    tokens[-10 * SEQ_LEN : -5 * SEQ_LEN] = tokens[: 5 * SEQ_LEN]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shard-00000.bin").write_bytes(tokens.tobytes())
    manifest = {
        "schema": "pretokenize-bin-v1",
        "tokenizer_sha256": "0" * 64,
        "corpus_sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "shard_count": 1,
        "total_tokens": len(tokens),
        "vocab_size": VOCAB_SIZE,
        "eos_policy": "none",
        "eos_token_id": None,
        "seq_length_hint": None,
        "producer_version": "faults",
        "producer_sha256": "",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
