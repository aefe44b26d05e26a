"""Exports the trained student as a folder that plain transformers loads.

    export/  config.json, generation_config.json, model.safetensors, tokenizer files,
             distillation_metadata.json
             adapter/ (adapter_config.json, adapter_model.safetensors; only with adapters, which
             are merged into model.safetensors too)

The folder appears whole or not at all, and only after it was loaded back and compared.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import structlog
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lectern_common.errors import CorruptData
from lectern_common.files import new_folder
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.loading import load_causal_lm
from student_trainer.disk_full import disk_full_as_error
from student_trainer.student.lora import Adapters
from student_trainer.student.tensors import all_tensors

_log = structlog.get_logger()

METADATA_NAME = "distillation_metadata.json"
ADAPTER_FOLDER = "adapter"
# The files of a tokenizer in a model folder, of any kind.
_TOKENIZER_FILES = (
    TOKENIZER_NAME,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
# One file, whatever its size.
_ONE_FILE = "1000TB"


def export_student(
    model: PreTrainedModel,
    target: Path,
    *,
    student_folder: Path,
    dataset: Path | None,
    eos_token_id: int | None,
    metadata: dict[str, Any],
    adapters: Adapters | None = None,
) -> str:
    """Writes the folder, replacing an earlier one; returns the hash of the weights (weights.py).

    Args:
        model: the trained model; left unchanged.
        target: the folder to write.
        student_folder: where the student came from; its tokenizer is exported.
        dataset: its tokenizer.json is exported if the student has none.
        eos_token_id: the dataset's end-of-document token; used with the dataset's tokenizer.
        metadata: for distillation_metadata.json; `student_weights_sha256` is added.
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
        _write_tokenizer(folder, student_folder, dataset, eos_token_id)
        digest = weights_sha256(safetensors_files(folder))
        text = json.dumps({**metadata, "student_weights_sha256": digest}, indent=2)
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
    folder: Path, student_folder: Path, dataset: Path | None, eos_token_id: int | None
) -> None:
    if any((student_folder / name).exists() for name in (TOKENIZER_NAME, "tokenizer.model")):
        for name in _TOKENIZER_FILES:
            if (student_folder / name).exists():
                shutil.copyfile(student_folder / name, folder / name)
        return
    source = None if dataset is None else dataset / TOKENIZER_NAME
    if source is None or not source.exists():
        _log.warning("export_without_tokenizer", why="neither the student nor the dataset has one")
        return
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(source))
    if eos_token_id is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos_token_id)
    tokenizer.save_pretrained(str(folder))
    # The exact file that the dataset was made with.
    shutil.copyfile(source, folder / TOKENIZER_NAME)
