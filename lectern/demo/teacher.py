"""The teacher of a demo: a run with alpha 1 whose export the next demo uses again."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from lectern import console
from lectern.demo.specs import MODEL_CONFIGS
from lectern.local.foreground import run_trainer
from lectern.terminal.live import display
from lectern_common.errors import Conflict, LecternError
from lectern_common.files import rename_durably, write_atomic
from lectern_common.json_lines import read_json_lines
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.shards import MANIFEST_NAME

_RECORD = "demo.json"


@dataclass(frozen=True)
class TrainedTeacher:
    """The demo's teacher: a folder that transformers loads, and its loss on the validation set."""

    path: Path
    val_loss: float


def write_configs(models: Path) -> None:
    """Writes the configs of teacher and student under the models root."""
    for name, config in MODEL_CONFIGS.items():
        (models / name).mkdir(parents=True, exist_ok=True)
        write_atomic(models / name / "config.json", json.dumps(config, indent=2).encode())


def trained_teacher(home: Path, spec: RunSpec) -> TrainedTeacher:
    """Returns the teacher of that spec; trains it unless the same one exists already.

    Raises:
        Conflict: another demo trains it.
        LecternError: its training failed.
    """
    roots = Roots.of_home(home)
    manifest = (roots.data / str(spec.data.path) / MANIFEST_NAME).read_bytes()
    config = json.dumps(MODEL_CONFIGS["teacher-config"], sort_keys=True)
    made_from = {
        "spec": spec.model_dump(mode="json", exclude={"device"}),
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
    }
    target = roots.models / spec.name
    if (target / _RECORD).exists():
        record = json.loads((target / _RECORD).read_text())
        if record["made_from"] == made_from:
            console.note(f"teacher: kept from before, validation loss {record['val_loss']:.2f}")
            return TrainedTeacher(target, record["val_loss"])
    training_root = home / "teacher-training"
    earlier = RunFolder(training_root / spec.name)
    if earlier.path.is_dir() and earlier.is_locked():
        raise Conflict(
            f"another demo is training its teacher in {home}; wait for it, or set --folder"
        )
    shutil.rmtree(training_root, ignore_errors=True)
    folder = RunFolder.create(training_root, spec.name, spec)
    steps = spec.schedule.steps
    console.note(f"teacher: training it for {steps} steps; the next demo will reuse it")
    with display() as show:
        code = run_trainer(folder, roots, show=lambda view: show([view]))
    status = folder.read_status()
    if status is not None and status.state is RunState.STOPPED:
        raise KeyboardInterrupt
    if code != 0 or status is None or status.state != RunState.SUCCEEDED:
        why = status.message if status and status.message else f"see {folder.log_path}"
        raise LecternError(f"the teacher's training did not finish: {why}")
    losses = [
        line["loss/val"] for line in read_json_lines(folder.metrics_path) if "loss/val" in line
    ]
    made = {"made_from": made_from, "val_loss": losses[-1]}
    write_atomic(folder.export_path / _RECORD, json.dumps(made, indent=2).encode())
    shutil.rmtree(target, ignore_errors=True)
    rename_durably(folder.export_path, target)
    return TrainedTeacher(target, losses[-1])
