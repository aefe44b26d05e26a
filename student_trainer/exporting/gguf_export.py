"""Writes a model folder as one GGUF file for llama.cpp, and reads the file back.

Memory holds one tensor at a time. The file appears whole or not at all, and only after each of its
tensors was read back and compared with the model's.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from lectern_common.errors import CorruptData
from lectern_common.files import replaced_file
from lectern_common.stages.export import GgufType
from lectern_common.stages.status import Report
from lectern_common.teacher.record.reader import file_sha256
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.quantization import require_packages
from student_trainer.exporting.architectures import (
    add_settings,
    architecture_of,
    rope_divisors,
)
from student_trainer.exporting.tensors import (
    ModelTensors,
    StoredTensor,
    decoded,
    encoded,
    planned_tensors,
)
from student_trainer.exporting.tokenizer import tokenizer_of

WEIGHTS_KEY = "lectern.student_weights_sha256"
_ROPE_TENSOR = "rope_freqs.weight"
# The largest errors of a number that is rounded to 16 bits: relative to it, and of the smallest.
_F16_RELATIVE, _F16_ABSOLUTE = 2.0**-11, 2.0**-25


@dataclass(frozen=True)
class WrittenGguf:
    """A GGUF file that was written and read back.

    Attributes:
        sha256: of the file.
        num_bytes: its size.
        largest_error: the largest difference between a number of the model and of the file.
        kept_f16: matrices of a q8_0 file that stayed in f16, by their names in the model.
        notes: what differs from transformers all the same, a sentence each.
    """

    sha256: str
    num_bytes: int
    largest_error: float
    kept_f16: list[str]
    notes: list[str]


def write_gguf(
    folder: Path,
    target: Path,
    gguf_type: GgufType,
    *,
    name: str,
    check: Callable[[], None] = lambda: None,
    report: Report = lambda what, done, of: None,
) -> WrittenGguf:
    """Writes the model, tokenizer and chat template of an export as a GGUF file.

    Args:
        folder: a model folder with a tokenizer.json.
        target: the file; replaced if it exists.
        gguf_type: what matrices are stored as; norms and biases stay in float32.
        name: of the model, for the file.
        check: called between tensors; may raise, for a stop.
        report: told how many tensors are written and read back.

    Raises:
        Incompatible: the model or its tokenizer cannot be said in a GGUF file, or llama.cpp would
            compute something else.
        NotFound: the folder has no model, or no tokenizer.json.
        CorruptData: the weights cannot be read, or the file does not hold what was written.
        Misconfigured: the package gguf is missing.
    """
    require_packages("gguf", "a GGUF file", "gguf")
    config = config_of(folder)
    architecture_of(config)
    tokenizer = tokenizer_of(folder, config.vocab_size)
    tensors = ModelTensors(safetensors_files(folder))
    plan = planned_tensors(tensors.shapes, config, gguf_type)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(target) as hidden:
        with closing(_writer(hidden, config, gguf_type, name)) as writer:
            writer.add_string(WEIGHTS_KEY, weights_sha256(safetensors_files(folder)))
            tokenizer.add_to(writer)
            _write_tensors(writer, tensors, plan, config, check, report)
        largest = _read_back(hidden, tensors, plan, config, check, report)
        num_bytes, digest = hidden.stat().st_size, file_sha256(hidden)
    kept = [one.source for one in plan if gguf_type == "q8_0" and one.kind == "F16"]
    return WrittenGguf(digest, num_bytes, largest, kept, tokenizer.vocabulary.notes)


def config_of(folder: Path) -> Any:
    """Returns the config of a model folder. Raises CorruptData."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever an architecture makes of settings that it cannot use
        raise CorruptData(f"cannot read config.json in {folder}: {error}") from None


def _writer(path: Path, config: Any, gguf_type: GgufType, name: str) -> Any:
    import gguf

    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_type("model")
    writer.add_name(name)
    kinds = {"f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    writer.add_file_type(int(kinds[gguf_type]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_settings(writer, config)
    return writer


def _write_tensors(
    writer: Any,
    tensors: ModelTensors,
    plan: list[StoredTensor],
    config: Any,
    check: Callable[[], None],
    report: Report,
) -> None:
    import gguf

    divisors = rope_divisors(config)
    if divisors is not None:
        writer.add_tensor_info(_ROPE_TENSOR, divisors.shape, divisors.dtype, divisors.nbytes)
    for one in plan:
        kind = gguf.GGMLQuantizationType[one.kind]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = int(np.prod(one.shape)) // block * block_bytes
        dtype = np.dtype(np.float16 if one.kind == "F16" else np.float32)
        writer.add_tensor_info(one.name, one.shape, dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for done, one in enumerate(plan):
        check()
        report("tensors", done, 2 * len(plan))
        writer.write_tensor_data(encoded(tensors.read(one.source), one, config))


def _read_back(
    path: Path,
    tensors: ModelTensors,
    plan: list[StoredTensor],
    config: Any,
    check: Callable[[], None],
    report: Report,
) -> float:
    """Returns the largest difference between the model and the file.

    Raises:
        CorruptData: a number differs by more than its rounding.
    """
    largest = 0.0
    stored = stored_tensors(path)
    for done, one in enumerate(plan):
        check()
        report("tensors", len(plan) + done, 2 * len(plan))
        values = tensors.read(one.source)
        error = np.abs(decoded(stored[one.name], one, config) - values)
        if not (error <= _allowed(values, one)).all():
            raise CorruptData(f"{path} does not hold {one.source}: off by {error.max():g}")
        largest = max(largest, float(error.max(initial=0.0)))
    report("tensors", 2 * len(plan), 2 * len(plan))
    return largest


def stored_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns name -> data of a GGUF file's tensors, read when it is used."""
    import gguf

    return {str(tensor.name): tensor.data for tensor in gguf.GGUFReader(path).tensors}


def _allowed(values: np.ndarray, tensor: StoredTensor) -> Any:
    size = np.abs(values)
    if tensor.kind == "F32":
        return 2.0**-22 * (size + 1)  # a norm has had 1 added and subtracted
    if tensor.kind == "F16":
        return size * _F16_RELATIVE + _F16_ABSOLUTE
    blocks = size.reshape(-1, 32).max(axis=1, keepdims=True)
    # Half a step of 127, and the scale's own rounding to 16 bits.
    limits = blocks * (0.5 / 127 + 2 * _F16_RELATIVE) + 127 * 2 * _F16_ABSOLUTE
    return np.broadcast_to(limits, (blocks.size, 32)).reshape(values.shape)


def string_of(path: Path, key: str) -> str | None:
    """Returns a text in the metadata of a GGUF file; None if it has none. Raises CorruptData."""
    import gguf

    try:
        field = gguf.GGUFReader(path).fields.get(key)
    except Exception as error:  # arbitrary bytes can raise anything
        raise CorruptData(f"cannot read {path}: {error or type(error).__name__}") from None
    return None if field is None else str(field.contents())
