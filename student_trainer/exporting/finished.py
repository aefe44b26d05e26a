"""The export of a run that has succeeded: where it is, and that it is what the trainer wrote."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lectern_common.errors import Conflict, CorruptData, NotFound
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_common.words import inert_name
from student_trainer.student.export import METADATA_NAME


@dataclass(frozen=True)
class FinishedRun:
    """A run with an export.

    Attributes:
        folder: of the run.
        metadata: of the export, as distillation_metadata.json has it.
        weights_sha256: of the exported weights.
    """

    folder: RunFolder
    metadata: dict[str, Any]
    weights_sha256: str

    @property
    def export(self) -> Path:
        return self.folder.export_path


def finished_run(roots: Roots, run_id: str) -> FinishedRun:
    """Returns a run whose export is intact.

    Raises:
        NotFound: there is no such run.
        Conflict: it has no export yet.
        CorruptData: the exported weights are not those that the trainer wrote.
    """
    folder = RunFolder(roots.runs / run_id)
    if not folder.spec_path.is_file():
        raise NotFound(f"no run {inert_name(run_id)} under {roots.runs}")
    if not folder.export_path.is_dir():
        raise Conflict(
            f"run {inert_name(run_id)} has no export yet: it is written when the run has succeeded"
        )
    path = folder.export_path / METADATA_NAME
    try:
        metadata = json.loads(path.read_bytes())
        promised = metadata["student_weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptData(f"cannot read {path}: {error}") from None
    digest = weights_sha256(safetensors_files(folder.export_path))
    if digest != promised:
        raise CorruptData(
            f"the weights in {folder.export_path} are not those that {METADATA_NAME} names: "
            f"expected {promised}, got {digest}"
        )
    return FinishedRun(folder, metadata, digest)
