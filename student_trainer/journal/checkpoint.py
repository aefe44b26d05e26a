"""Checkpoints: complete or absent, verified before use; the last good one is never deleted.

    checkpoints/step-00000500/
      model.safetensors      trained parameters (LoRA: only the adapters) and buffers, by name
      optimizer.safetensors  AdamW's moments, by parameter (optim.py)
      rollouts.safetensors   texts that the student wrote and has not learnt yet, if there are any
                             (generating/rollouts/saved.py)
      state.json             step, spec, counters, metrics of the step, hashes
      manifest.json          {"files": {name: {"bytes", "sha256"}}}

A checkpoint is written to a hidden folder, every file is fsynced, the folder renamed and its parent
fsynced. A reader first checks sizes and hashes; a folder that fails is set aside as
broken-step-..., and the one before it is used. A checkpoint holds no random state: everything
random is drawn from (seed, step).
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lectern_common.errors import CorruptData, NotFound
from lectern_common.files import new_folder, rename_durably
from lectern_common.logs import get_logger
from lectern_common.run.checkpoint_files import (
    MANIFEST_NAME,
    MODEL_NAME,
    OPTIMIZER_NAME,
    ROLLOUTS_NAME,
    STATE_NAME,
    checkpoint_path,
    manifest_of,
    sha256_of,
    verified_state,
    write_json,
)
from lectern_common.run.folder import checkpoint_steps
from lectern_common.spec.suites import VALIDATION_LOSS
from student_trainer.journal.disk_full import disk_full_as_error

_log = get_logger()

_TEMPORARY = ".writing-"


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

    def rollout_tensors(self) -> dict[str, Tensor]:
        """Returns the rollouts that are still to be learnt; {} without any."""
        path = self.path / ROLLOUTS_NAME
        return safetensors.torch.load_file(path) if path.exists() else {}


class CheckpointStore:
    """The checkpoints of one run. Only the process that holds the run's lock uses it.

    Args:
        folder: checkpoints/; created at the first save.
        keep_last: how many of the newest to keep, at least one.
        keep_best: how many more to keep that are best by the metric in the record of their state;
            one saved at a step without an evaluation has none. Unless this is 0, the checkpoint at
            `best.step` of the newest state is kept too: if its evaluation was interrupted, its own
            state has no value.
        on_event: called with (kind, details).
        save_tensors: writes a safetensors file.
        metric: what `keep_best` goes by.
        highest_is_best: of the metric.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int,
        keep_best: int,
        on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _details: None,
        save_tensors: Callable[[dict[str, Tensor], Path], None] = safetensors.torch.save_file,
        metric: str = VALIDATION_LOSS,
        highest_is_best: bool = False,
    ) -> None:
        self._folder = folder
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._on_event = on_event
        self._save_tensors = save_tensors
        self._metric = metric
        self._sign = -1.0 if highest_is_best else 1.0

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, ascending, without verifying them."""
        return checkpoint_steps(self._folder)

    def save(
        self,
        step: int,
        model: dict[str, Tensor],
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        rollouts: dict[str, Tensor] | None = None,
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
            if rollouts:
                self._save_tensors(rollouts, folder / ROLLOUTS_NAME)
            sha = sha256_of(folder / OPTIMIZER_NAME)
            write_json(folder / STATE_NAME, {**state, "step": step, "optimizer_state_sha": sha})
            write_json(folder / MANIFEST_NAME, manifest_of(folder))
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
        """Returns the best (value, step) of all checkpoints; the oldest on a tie."""
        values = ((self._value(step), step) for step in self.steps())
        best = min(
            ((self._sign * value, step) for value, step in values if value is not None),
            default=None,
        )
        return None if best is None else (self._sign * best[0], best[1])

    def sweep(self) -> None:
        """Deletes what a killed `save` left behind."""
        if self._folder.is_dir():
            for path in self._folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return checkpoint_path(self._folder, step)

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
        values = {step: self._value(step) for step in steps}
        measured = [
            (self._sign * value, step) for step, value in values.items() if value is not None
        ]
        kept.update(step for _, step in sorted(measured)[: self._keep_best])
        if self._keep_best and best_step is not None:
            kept.add(best_step)
        for step in steps:
            if step not in kept:
                # Hidden first: nobody must see half a checkpoint.
                doomed = self._path(step).with_name(f"{_TEMPORARY}deleted-{step:08d}")
                self._path(step).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _value(self, step: int) -> float | None:
        """Returns the metric in the state of a checkpoint; None if it has none."""
        try:
            state = json.loads((self._path(step) / STATE_NAME).read_bytes())
            is_loss = self._metric == VALIDATION_LOSS
            value = state["val_loss"] if is_loss else state["record"][self._metric]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns a checkpoint whose files all match the sizes and hashes in its manifest.

    Raises:
        CorruptData: a file does not match, or is missing.
    """
    state = verified_state(path)
    return Checkpoint(path, state["step"], state)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
