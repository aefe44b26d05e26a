"""The files of a checkpoint: their names, their hashes, and whether they are what was written.

Without tensors: the trainer writes checkpoints (student_trainer/journal/checkpoint.py), and the
control plane makes a new run of one (control_plane/runs/forking.py).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lectern_common.errors import CorruptData
from lectern_common.run.untrusted import read_at_most
from lectern_common.teacher.identity import TeacherIdentity

MODEL_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
ROLLOUTS_NAME = "rollouts.safetensors"
STATE_NAME = "state.json"
MANIFEST_NAME = "manifest.json"
# Those of every checkpoint; some have ROLLOUTS_NAME too.
FILE_NAMES = (MODEL_NAME, OPTIMIZER_NAME, STATE_NAME, MANIFEST_NAME)
_LOSSES = ("train_loss", "total_loss", "ce_loss", "kl_loss", "val_loss")
# In the state of a checkpoint that another run has written; the fork's own have none.
FORKED_FROM = "forked_from"
MAX_JSON_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """Returns the folder of the checkpoint of a step."""
    return checkpoints / f"step-{step:08d}"


def verified_state(path: Path) -> dict[str, Any]:
    """Returns the state in a checkpoint whose files all match their sizes and hashes.

    Reads every byte.

    Raises:
        CorruptData: a file does not match, or is missing.
    """
    try:
        files = json.loads(read_at_most(path / MANIFEST_NAME, MAX_JSON_BYTES))["files"]
        missing = {MODEL_NAME, OPTIMIZER_NAME, STATE_NAME} - set(files)
        if missing:
            raise CorruptData(f"the manifest of {path} does not list {min(missing)}")
        for name, facts in files.items():
            if (path / name).stat().st_size != facts["bytes"]:
                raise CorruptData(f"{path / name} does not have {facts['bytes']} bytes")
            if sha256_of(path / name) != facts["sha256"]:
                raise CorruptData(f"{path / name} is damaged: its SHA-256 differs")
        return state_in(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptData(f"{path} is not a complete checkpoint: {error}") from None


def state_in(path: Path) -> dict[str, Any]:
    """Returns the state in a checkpoint, not verified.

    Raises:
        CorruptData: it is too large.
        OSError, ValueError, KeyError, TypeError, RecursionError: it is not a state.
    """
    state = json.loads(read_at_most(path / STATE_NAME, MAX_JSON_BYTES))
    return {**state, "step": int(state["step"])}


def manifest_of(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder that has none yet."""
    return {"files": {path.name: file_facts(path) for path in sorted(folder.iterdir())}}


def file_facts(path: Path) -> dict[str, Any]:
    """Returns what a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def forked_state(
    state: Mapping[str, Any],
    forked_from: Mapping[str, Any],
    spec: Mapping[str, Any],
    teacher: TeacherIdentity | None,
    packs_chats: bool,
) -> dict[str, Any]:
    """Returns the state with which a fork begins, from that of the checkpoint that it is made of.

    Steps, tokens and seconds go on, and so does what is known of the student. Spec, teacher and
    rows are the fork's. It measures for itself: with other rows or another objective, the losses
    so far, and the lowest of them, would not compare.

    Args:
        state: of the source's checkpoint.
        forked_from: the source's run id and step.
        spec: the fork's, resolved.
        teacher: the fork's; None without one.
        packs_chats: whether the fork's rows of chats hold whole chats.
    """
    return {
        **state,
        FORKED_FROM: dict(forked_from),
        "spec": dict(spec),
        "data_sha256s": None,
        "packs_chats": packs_chats,
        "teacher_model": None if teacher is None else teacher.model_id,
        "teacher_fingerprint": None if teacher is None else teacher.fingerprint,
        "teacher_weights_sha256": None,
        "skipped_in_a_row": 0,
        "record": {},
        "best": {},
        **dict.fromkeys(_LOSSES),
    }


def write_json(path: Path, data: Any) -> None:
    """Writes JSON as checkpoints hold it."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False))


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
