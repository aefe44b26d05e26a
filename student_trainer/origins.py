"""Where a student comes from: a model folder, a hub id, or a config and a seed.

Every process of a run loads it by itself, and gets the same one. Nothing is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lectern_common.errors import Incompatible
from lectern_common.roots import Roots, resolve_under
from lectern_common.run_spec import RunSpec, StudentSpec
from lectern_common.tokenizer_map import TokenizerMap
from lectern_common.weights import safetensors_files, weights_sha256
from lectern_models.gguf_file import loaded_weights_sha256
from lectern_models.loading import (
    build_causal_lm,
    load_causal_lm,
    max_positions,
    tokenizer_map,
)
from lectern_models.model_folder import ModelFolder, find_model, find_on_hub
from student_trainer.students import CausalStudent, compute_dtype_named


@dataclass(frozen=True)
class LoadedStudent:
    """A student as it is before the run, and what there is to say of it.

    Attributes:
        student: on the run's device.
        folder: where it came from, with its tokenizer, if it has one.
        tokens: its token-to-id map; None where the folder has none.
        initial_sha256: of its weights, see lectern_common/weights.py; of the file where they are
            taken from one as they are, so that it equals that of a teacher with the same weights.
        facts: for the run's events, its checkpoints and the export's metadata.
    """

    student: CausalStudent
    folder: Path
    tokens: TokenizerMap | None
    initial_sha256: str
    facts: dict[str, Any]


def load_student(
    spec: RunSpec, roots: Roots, device: torch.device, begun: Mapping[str, Any] | None
) -> LoadedStudent:
    """Returns the student that a run begins with.

    Args:
        spec: the run's.
        roots: `models` holds the folders.
        device: where it is trained.
        begun: state of the checkpoint that the run goes on from: a hub id is taken at the commit
            that it was taken at then, and its weights are not hashed again.

    Raises:
        NotFound, CorruptData, Misconfigured: as find_model and load_causal_lm say.
        Incompatible: rows are longer than what it takes.
    """
    origin, folder = spec.student, _folder(spec.student, roots, begun)
    model = _model(origin, folder, spec.seed).to(device)  # type: ignore[arg-type]
    longest = max_positions(model)
    if longest is not None and spec.data.seq_len > longest:
        raise Incompatible(
            f"data.seq_len {spec.data.seq_len} exceeds the {longest} positions of the student"
        )
    if begun is not None:
        initial_sha256 = str(begun["initial_weights_sha256"])
    elif origin.init is not None:
        initial_sha256 = weights_sha256(safetensors_files(folder.path))
    else:
        initial_sha256 = loaded_weights_sha256(model)
    return LoadedStudent(
        CausalStudent(model, compute_dtype_named(origin.dtype, device)),
        folder.path,
        tokenizer_map(folder.path),
        initial_sha256,
        {"student_revision": folder.revision or None},
    )


def _folder(origin: StudentSpec, roots: Roots, begun: Mapping[str, Any] | None) -> ModelFolder:
    if origin.init is None:
        path = resolve_under(roots.models, str(origin.config), "student.config")
        return ModelFolder(path, str(origin.config))
    local = resolve_under(roots.models, origin.init, "student.init")
    if local.is_dir():
        return find_model(str(local), origin.revision)
    commit = None if begun is None else begun.get("student_revision")
    return find_on_hub(origin.init, commit or origin.revision)


def _model(origin: StudentSpec, folder: ModelFolder, seed: int) -> PreTrainedModel:
    """Returns it on the CPU, in float32."""
    if origin.init is None:
        return build_causal_lm(folder.path, seed)
    return load_causal_lm(folder.path, "float32")
