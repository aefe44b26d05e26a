"""Checkpoints: complete or absent, verified before use; the last good one is never deleted.

    checkpoints/step-00000500/
      model.safetensors      trained parameters (LoRA: only the adapters) and buffers, by name
      optimizer.safetensors  AdamW's moments, by parameter (optim.py)
      state.json             step, spec, counters, metrics of the step, hashes
      manifest.json          {"files": {name: {"bytes", "sha256"}}}

A checkpoint is written to a hidden folder, every file is fsynced, the folder renamed and its parent
fsynced. A reader first checks sizes and hashes; a folder that fails is set aside as
broken-step-..., and the one before it is used. A checkpoint holds no random state: everything
random is drawn from (seed, step).
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import structlog
from torch import Tensor

from lectern_common.errors import CorruptData, NotFound
from lectern_common.files import new_folder, rename_durably
from lectern_common.run.folder import checkpoint_steps
from student_trainer.journal.disk_full import disk_full_as_error

_log = structlog.get_logger()

MODEL_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
STATE_NAME = "state.json"
MANIFEST_NAME = "manifest.json"
_TEMPORARY = ".writing-"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `state` is what was passed to `save`."""

    path: Path
    step: int
    state: dict[str, Any]

    def model_tensors(self) -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.path / MODEL_NAME)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.path / OPTIMIZER_NAME)


class CheckpointStore:
    """The checkpoints of one run. Only the process that holds the run's lock uses it.

    Args:
        folder: checkpoints/; created at the first save.
        keep_last: how many of the newest to keep, at least one.
        keep_best: how many more to keep for the lowest `val_loss` in their state; one saved at a
            step without an evaluation has none. Unless this is 0, the checkpoint at `best.step` of
            the newest state is kept too: if its evaluation was interrupted, its own state has no
            loss.
        on_event: called with (kind, details).
        save_tensors: writes a safetensors file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int,
        keep_best: int,
        on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _details: None,
        save_tensors: Callable[[dict[str, Tensor], Path], None] = safetensors.torch.save_file,
    ) -> None:
        self._folder = folder
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._on_event = on_event
        self._save_tensors = save_tensors

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, ascending, without verifying them."""
        return checkpoint_steps(self._folder)

    def save(
        self,
        step: int,
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
    ) -> Path:
        """Writes a checkpoint, deletes those that are no longer kept, and returns the new folder.

        An intact checkpoint of the same step stays as it is; a broken one is set aside.
        `optimizer_state_sha` is added to the state.

        Raises:
            DiskFull: no space; nothing of the attempt is left, and older checkpoints are untouched.
            NotFound: the run folder was removed; it is not made again.
        """
        target = self._path(step)
        if not self._folder.parent.is_dir():
            raise NotFound(
                f"the run folder {self._folder.parent} was removed while the run trained"
            )
        if target.exists():
            if self._verified(target) is not None:
                return target
            self._set_aside(target)
        hidden = self._folder / f"{_TEMPORARY}{target.name}"
        with disk_full_as_error("a checkpoint"), new_folder(target, hidden) as folder:
            self._save_tensors(_on_cpu(model), folder / MODEL_NAME)
            self._save_tensors(_on_cpu(optimizer), folder / OPTIMIZER_NAME)
            sha = _sha256(folder / OPTIMIZER_NAME)
            _write_json(folder / STATE_NAME, {**state, "step": step, "optimizer_state_sha": sha})
            _write_json(folder / MANIFEST_NAME, _manifest_of(folder))
            for path in folder.iterdir():
                path.chmod(0o640)
        self._on_event("checkpoint", {"step": step, "path": f"checkpoints/{target.name}"})
        self._prune((state.get("best") or {}).get("step"))
        return target

    def newest(self) -> Checkpoint | None:
        """Returns the newest intact checkpoint; newer broken ones are set aside."""
        for step in reversed(self.steps()):
            path = self._path(step)
            found = self._verified(path)
            if found is not None:
                return found
            self._set_aside(path)
        return None

    def verified_before(self, step: int) -> Checkpoint:
        """Returns a checkpoint that another process of this run has verified already."""
        path = self._path(step)
        return Checkpoint(path, step, json.loads((path / STATE_NAME).read_bytes()))

    def at(self, step: int) -> Checkpoint:
        """Returns the checkpoint of a step. Raises CorruptData if it is missing or not intact."""
        return read_checkpoint(self._path(step))

    def best(self) -> tuple[float, int] | None:
        """Returns the lowest (validation loss, step) of all checkpoints; the oldest on a tie."""
        losses = ((self._val_loss(step), step) for step in self.steps())
        return min(((loss, step) for loss, step in losses if loss is not None), default=None)

    def sweep(self) -> None:
        """Deletes what a killed `save` left behind."""
        if self._folder.is_dir():
            for path in self._folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _verified(self, path: Path) -> Checkpoint | None:
        """Returns the checkpoint in a folder, or None, with a log line, if it is not intact."""
        try:
            return read_checkpoint(path)
        except CorruptData as error:
            _log.error("checkpoint_broken", error=str(error))
            return None

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(f"broken-{path.name}")
        number = 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"broken-{path.name}.{number}")
        rename_durably(path, aside)
        self._on_event("checkpoint_set_aside", {"path": f"checkpoints/{aside.name}"})

    def _prune(self, best_step: int | None) -> None:
        steps = self.steps()
        kept = set(steps[-max(1, self._keep_last) :])
        losses = {step: self._val_loss(step) for step in steps}
        measured = [(loss, step) for step, loss in losses.items() if loss is not None]
        kept.update(step for _, step in sorted(measured)[: self._keep_best])
        if self._keep_best and best_step is not None:
            kept.add(best_step)
        for step in steps:
            if step not in kept:
                # Hidden first: nobody must see half a checkpoint.
                doomed = self._path(step).with_name(f"{_TEMPORARY}deleted-{step:08d}")
                self._path(step).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _val_loss(self, step: int) -> float | None:
        try:
            loss = json.loads((self._path(step) / STATE_NAME).read_bytes())["val_loss"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return float(loss) if isinstance(loss, int | float) else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns a checkpoint whose files all match the sizes and hashes in its manifest.

    Raises:
        CorruptData: a file does not match, or is missing.
    """
    try:
        files = json.loads((path / MANIFEST_NAME).read_bytes())["files"]
        missing = {MODEL_NAME, OPTIMIZER_NAME, STATE_NAME} - set(files)
        if missing:
            raise CorruptData(f"the manifest of {path} does not list {min(missing)}")
        for name, facts in files.items():
            if (path / name).stat().st_size != facts["bytes"]:
                raise CorruptData(f"{path / name} does not have {facts['bytes']} bytes")
            if _sha256(path / name) != facts["sha256"]:
                raise CorruptData(f"{path / name} is damaged: its SHA-256 differs")
        state = json.loads((path / STATE_NAME).read_bytes())
        return Checkpoint(path, int(state["step"]), state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptData(f"{path} is not a complete checkpoint: {error}") from None


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False))


def _manifest_of(folder: Path) -> dict[str, Any]:
    return {
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(folder.iterdir())
        }
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
