"""Lists the datasets, records and models under the roots, from which a run can be made."""

import json
from pathlib import Path

from control_plane.views.catalog import DatasetView, ModelView, RecordView
from lectern_common.errors import LecternError
from lectern_common.roots import folders_with
from lectern_common.teacher.record.manifest import is_record, read_record_manifest
from lectern_common.teacher.record.reader import described, require_sizes
from lectern_common.tokens.shards import MANIFEST_NAME, TOKENIZER_NAME, read_any_manifest
from lectern_common.tokens.tokenizer_files import vocabulary_files
from lectern_common.tokens.weights import safetensors_files

_MAX_CONFIG_BYTES = 1 << 20


def datasets(root: Path) -> list[DatasetView]:
    """Returns every folder under `root` that has a manifest but is not a record, by path."""
    found = folders_with(root, MANIFEST_NAME)
    return [_dataset(root, folder) for folder in found if not is_record(folder)]


def records(root: Path) -> list[RecordView]:
    """Returns every folder under `root` that has a record's manifest, by path."""
    found = folders_with(root, MANIFEST_NAME)
    return [_record(root, folder) for folder in found if is_record(folder)]


def models(root: Path) -> list[ModelView]:
    """Returns every folder under `root` that has a config.json, by path."""
    return [_model(root, folder) for folder in folders_with(root, "config.json")]


def _dataset(root: Path, folder: Path) -> DatasetView:
    path = str(folder.relative_to(root))
    try:
        manifest = read_any_manifest(folder)
    except (LecternError, OSError) as error:
        return DatasetView(path=path, problem=str(error))
    return DatasetView(
        path=path,
        problem=None,
        holds=manifest.holds,
        document_count=manifest.document_count,
        total_tokens=manifest.total_tokens,
        shard_count=manifest.shard_count,
        vocab_size=manifest.vocab_size,
        seq_length_hint=manifest.seq_length_hint,
        tokenizer_sha256=manifest.tokenizer_sha256,
    )


def _record(root: Path, folder: Path) -> RecordView:
    path = str(folder.relative_to(root))
    try:
        manifest = read_record_manifest(folder)
        require_sizes(folder, manifest)
    except (LecternError, OSError) as error:
        return RecordView(path=path, problem=str(error))
    return RecordView(
        path=path,
        problem=None,
        model=manifest.model_id,
        fingerprint=manifest.fingerprint,
        holds=[described(part) for part in manifest.parts],
        data_path=manifest.contexts.data_path,
        seq_len=manifest.contexts.seq_len,
        vocab_size=manifest.vocab_size,
        bytes=manifest.total_bytes,
    )


def _model(root: Path, folder: Path) -> ModelView:
    path = str(folder.relative_to(root))
    try:
        with (folder / "config.json").open("rb") as file:
            config = json.loads(file.read(_MAX_CONFIG_BYTES))
        vocab_size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
        named = config.get("architectures")
        architecture = named[0] if isinstance(named, list) and named else config.get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return ModelView(path=path, problem=f"config.json cannot be read: {error}")
    try:
        weights = safetensors_files(folder)
        weights_bytes = sum(file.stat().st_size for file in weights)
    except (LecternError, OSError):
        weights, weights_bytes = [], 0
    return ModelView(
        path=path,
        problem=None,
        architecture=architecture if isinstance(architecture, str) and architecture else None,
        vocab_size=vocab_size if type(vocab_size) is int else None,
        has_weights=bool(weights),
        has_tokenizer=(folder / TOKENIZER_NAME).exists() or bool(vocabulary_files(folder)),
        weights_bytes=weights_bytes if weights else None,
    )
