"""Exports the trained student as a folder that plain transformers loads.

    export/  config.json, generation_config.json, model.safetensors, tokenizer files,
             distillation_metadata.json, and README.md if the tokenizer needs a loader of its own
             adapter/ (adapter_config.json, adapter_model.safetensors; only with adapters, which
             are merged into model.safetensors too)

The folder appears whole or not at all, and only after it was loaded back and compared.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lectern_common.errors import CorruptData
from lectern_common.files import new_folder
from lectern_common.logs import get_logger
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.loading import load_causal_lm
from student_trainer.journal.disk_full import disk_full_as_error
from student_trainer.student.ends import edges_of
from student_trainer.student.exported_tokenizer import write_tokenizer
from student_trainer.student.lora import Adapters
from student_trainer.student.tensors import all_tensors

_log = get_logger()

METADATA_NAME = "distillation_metadata.json"
ADAPTER_FOLDER = "adapter"
# One file, whatever its size.
_ONE_FILE = "1000TB"


def export_student(
    model: PreTrainedModel,
    target: Path,
    *,
    student_folder: Path | None,
    dataset: Path | None,
    eos_token_id: int | None,
    metadata: dict[str, Any],
    adapters: Adapters | None = None,
) -> str:
    """Writes the folder, replacing an earlier one; returns the hash of the weights (weights.py).

    Args:
        model: the trained model; left unchanged.
        target: the folder to write.
        student_folder: where the student came from, None if from no folder; its tokenizer is
            exported.
        dataset: what it was trained on. Its tokenizer is exported if the student has none, and the
            ends that it taught are named.
        eos_token_id: the dataset's end-of-document token.
        metadata: for distillation_metadata.json; `student_weights_sha256` is added, and facts about
            the tokenizer.
        adapters: those in the model, if any.

    Raises:
        CorruptData: the export does not load as the trained model.
        DiskFull: no space left; an earlier export is left unchanged.
    """
    hidden = target.with_name(f".{target.name}.writing")
    replaced = target.with_name(f".{target.name}.replaced")
    with disk_full_as_error("the export"), new_folder(target, hidden, aside=replaced) as folder:
        whole = model if adapters is None else adapters.merged()
        whole.save_pretrained(folder, max_shard_size=_ONE_FILE)
        _require_written(whole, folder)
        if adapters is not None:
            adapters.save(folder / ADAPTER_FOLDER)
        facts = _write_tokenizer(folder, model, student_folder, dataset, eos_token_id)
        digest = weights_sha256(safetensors_files(folder))
        text = json.dumps({**metadata, **facts, "student_weights_sha256": digest}, indent=2)
        (folder / METADATA_NAME).write_text(text + "\n")
        for path in (*folder.rglob("*"), folder):
            path.chmod(0o755 if path.is_dir() else 0o644)
    _log.info("exported", path=str(target), weights_sha256=digest)
    return digest


def _require_written(model: PreTrainedModel, folder: Path) -> None:
    """Raises CorruptData unless the folder loads as the model, bit for bit."""
    written = all_tensors(load_causal_lm(folder, "float32"))
    trained = all_tensors(model)
    if different := written.keys() ^ trained.keys():
        raise CorruptData(f"the export and the trained model do not both have {min(different)}")
    for name, tensor in trained.items():
        if not torch.equal(written[name], tensor.cpu()):
            raise CorruptData(f"{name} in the export differs from the trained tensor")


def _write_tokenizer(
    folder: Path,
    model: PreTrainedModel,
    student_folder: Path | None,
    dataset: Path | None,
    eos_token_id: int | None,
) -> dict[str, Any]:
    """Writes the tokenizer, and the tokens that begin and end a text; returns facts about both."""
    written = write_tokenizer(folder, student_folder, dataset, eos_token_id)
    files = {} if written is None else written.files
    edges = edges_of(model, student_folder, dataset, files, eos_token_id)
    edges.put_into(folder)
    _log.info("export_begins_and_ends", begins=edges.begins, ends=list(edges.ends))
    if written is None:
        return {}
    return {
        "tokenizer_loader": written.loader,
        # Only training says it: the tokenizer may put a token there that the data had not.
        **({} if edges.taught_begin is None else {"begins_texts_with": list(edges.taught_begin)}),
        "ends_texts_with": list(edges.ends),
    }
