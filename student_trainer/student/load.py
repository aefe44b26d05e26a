"""Loads the student of a run: from a model folder, a hub id, or a config and a seed.

From a folder or hub id it takes all layers or every n-th. Either the weights are trained, or they
stay frozen and carry adapters. Every process of a run loads its student by itself and gets the same
one. Nothing is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lectern_common.checks.rules import require_positions
from lectern_common.errors import Incompatible, NotFound
from lectern_common.roots import Roots, resolve_under, what_is_there
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sections import StudentSpec
from lectern_common.tokens.tokenizer_map import TokenizerMap
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.gguf_file import loaded_weights_sha256
from lectern_models.loading import (
    build_causal_lm,
    load_causal_lm,
    max_positions,
    tokenizer_map,
)
from lectern_models.model_folder import CONFIG_NAME, ModelFolder, find_model, find_on_hub
from student_trainer.student.layers import keep_every_nth_layer
from student_trainer.student.lora import Adapters, add_adapters
from student_trainer.student.student import CausalStudent, compute_dtype_named


@dataclass(frozen=True)
class LoadedStudent:
    """A student before the run, and the facts about it.

    Attributes:
        student: on the run's device.
        folder: where it came from, with its tokenizer, if it has one.
        tokens: its token-to-id map; None if the folder has none.
        initial_sha256: hash of its weights, see lectern_common/tokens/weights.py; that of the file
            if the weights are used unchanged, so it equals that of a teacher with the same weights.
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
        device: where to train the student.
        begun: state of the checkpoint to resume from; None means a new run. A resume takes a hub id
            at the commit that the run began with. Frozen weights, which no checkpoint contains,
            must be unchanged; weights that a checkpoint replaces are not hashed again.

    Raises:
        NotFound, CorruptData, Misconfigured: as find_model and load_causal_lm say.
        InvalidSpec: layers cannot be removed from the model, or its layers take no adapters.
        Incompatible: rows are longer than the model's positions, or a resume finds other weights.
    """
    origin, folder = spec.student, _folder(spec.student, roots, begun)
    facts: dict[str, Any] = {"student_revision": folder.revision or None}
    if origin.init is None:
        model = build_causal_lm(folder.path, spec.seed)
    else:
        model = load_causal_lm(folder.path, "float32")
    require_positions(spec.data.seq_len, max_positions(model))
    if origin.keep_every_nth_layer is not None:
        facts["kept_layers"] = keep_every_nth_layer(model, origin.keep_every_nth_layer)
    initial_sha256 = _initial_sha256(model, origin, folder, begun)
    adapters = _add_adapters(model, spec, folder)
    if adapters is not None:
        facts["lora"] = adapters.facts()
    student = CausalStudent(
        model.to(device),  # type: ignore[arg-type]
        compute_dtype_named(origin.dtype, device),
        adapters,
    )
    if spec.device.activation_checkpointing:
        student.checkpoint_activations()
    return LoadedStudent(student, folder.path, tokenizer_map(folder.path), initial_sha256, facts)


def _folder(origin: StudentSpec, roots: Roots, begun: Mapping[str, Any] | None) -> ModelFolder:
    if origin.init is None:
        path = resolve_under(roots.models, str(origin.config), "student.config")
        if not (path / CONFIG_NAME).exists():
            there = what_is_there(roots.models, str(origin.config), CONFIG_NAME)
            raise NotFound(
                f"student.config: no model folder {origin.config!r} under the models root {there}. "
                "It was there when the run was accepted: put it back, then resume the run"
            )
        return ModelFolder(path, str(origin.config))
    local = resolve_under(roots.models, origin.init, "student.init")
    commit = None if begun is None else begun.get("student_revision")
    if commit is None and local.is_dir():
        return find_model(str(local), origin.revision, field="student.init")
    return find_on_hub(origin.init, commit or origin.revision, "student.init")


def _initial_sha256(
    model: PreTrainedModel,
    origin: StudentSpec,
    folder: ModelFolder,
    begun: Mapping[str, Any] | None,
) -> str:
    """Returns the hash of the weights before training, without adapters."""
    if begun is not None and origin.lora is None:
        return str(begun["initial_weights_sha256"])
    if origin.init is None or origin.keep_every_nth_layer is not None:
        digest = loaded_weights_sha256(model)
    else:
        digest = weights_sha256(safetensors_files(folder.path))
    if begun is not None and digest != begun["initial_weights_sha256"]:
        raise Incompatible(
            f"the weights of student.init {origin.init} have changed since the run began, and its "
            "adapters belong to the old ones; restore those, or start a new run"
        )
    return digest


def _add_adapters(model: PreTrainedModel, spec: RunSpec, folder: ModelFolder) -> Adapters | None:
    origin, lora = spec.student, spec.student.lora
    if lora is None:
        return None
    # A model with layers removed has no folder: on the whole model the adapters would end up on
    # other layers than those they were trained on.
    is_whole = origin.keep_every_nth_layer is None
    return add_adapters(
        model,
        lora,
        seed=spec.seed,
        base=origin.init if is_whole else None,
        revision=folder.revision or None,
    )
