"""Writes a model folder as one GGUF file for llama.cpp, and reads the file back.

Memory holds one tensor at a time. The file appears whole or not at all, and only after each of its
tensors was read back and compared with the model's.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from lectern_common.errors import CorruptData, Misconfigured, NotFound
from lectern_common.files import replaced_file
from lectern_common.stages.export import GgufType
from lectern_common.tokens.beginning import usual_beginning
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import (
    TEMPLATE_NAME,
    TEMPLATES_FOLDER,
    complete_tokenizer,
    named_tokens,
    read_tokenizer_files,
    tokenizer_config,
)
from lectern_common.tokens.weights import safetensors_files
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
from student_trainer.exporting.vocabulary import Vocabulary, vocabulary_of
from student_trainer.student.export import METADATA_NAME

Report = Callable[[str, int, int], None]

WEIGHTS_KEY = "lectern.student_weights_sha256"
_ROPE_TENSOR = "rope_freqs.weight"
_END_KEYS = ("eos", "eot", "eom")  # of a text, of a turn, of a message: llama.cpp stops at each
_NAMED = ("unk", "pad")
# The largest error of a number that is rounded to 16 bits, relative to it; of the smallest, absolute.
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
    files = _tokenizer_files(folder)
    vocabulary, notes = _vocabulary(files, config.vocab_size)
    tensors = ModelTensors(safetensors_files(folder))
    plan = planned_tensors(tensors.shapes, config, gguf_type)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(target) as hidden:
        writer = _writer(hidden, config, gguf_type, name)
        metadata = _metadata(folder)
        writer.add_string(WEIGHTS_KEY, str(metadata.get("student_weights_sha256", "")))
        _add_tokenizer(writer, vocabulary, files, _edges(folder, files, metadata))
        _write_tensors(writer, tensors, plan, config, check, report)
        largest = _read_back(hidden, tensors, plan, config, check, report)
        num_bytes, digest = hidden.stat().st_size, _sha256(hidden)
    kept = [one.source for one in plan if gguf_type == "q8_0" and one.kind == "F16"]
    return WrittenGguf(digest, num_bytes, largest, kept, notes)


def config_of(folder: Path) -> Any:
    """Returns the config of a model folder. Raises CorruptData."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever an architecture makes of settings that it cannot use
        raise CorruptData(f"cannot read config.json in {folder}: {error}") from None


def _tokenizer_files(folder: Path) -> dict[str, bytes]:
    try:
        return read_tokenizer_files(folder / TOKENIZER_NAME)
    except NotFound:
        raise NotFound(
            f"{folder} has no {TOKENIZER_NAME}, which a GGUF file is made of; train on data whose "
            "tokenizer has one, or export with --format safetensors"
        ) from None


def _vocabulary(files: Mapping[str, bytes], vocab_size: int) -> tuple[Vocabulary, list[str]]:
    tokenizer, _ = complete_tokenizer(files, TOKENIZER_NAME)
    vocabulary = vocabulary_of(json.loads(tokenizer.to_str()), vocab_size)
    return vocabulary, list(vocabulary.notes)


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


@dataclass(frozen=True)
class _Edges:
    """The tokens around a text. `adds` is whether `begins` is put before each."""

    begins: int | None
    adds: bool
    ends: list[int]


def _edges(folder: Path, files: Mapping[str, bytes], metadata: Mapping[str, Any]) -> _Edges:
    """Returns what began and ended texts in training; what nobody says, the tokenizer's habit.

    Raises:
        Misconfigured: texts began with several tokens; llama.cpp puts one.
    """
    tokenizer, _ = complete_tokenizer(files, TOKENIZER_NAME)
    taught, usual = metadata.get("begins_texts_with"), usual_beginning(tokenizer, files)
    before = list(taught) if taught is not None else list(usual.token_ids if usual else ())
    if len(before) > 1:
        raise Misconfigured(
            f"the student's tokenizer puts {len(before)} tokens before a text; llama.cpp puts one"
        )
    generation = _json(folder / "generation_config.json")
    named = named_tokens(files).get("bos_token")
    known = generation.get("bos_token_id")
    if known is None and named is not None:
        known = tokenizer.token_to_id(named.text)
    ends = generation.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return _Edges(before[0] if before else known, bool(before), ends)


def _add_tokenizer(
    writer: Any, vocabulary: Vocabulary, files: Mapping[str, bytes], edges: _Edges
) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.adds_space)
    if edges.begins is not None:
        writer.add_bos_token_id(edges.begins)
    writer.add_add_bos_token(edges.adds)
    writer.add_add_eos_token(False)
    for key, token_id in zip(_END_KEYS, edges.ends, strict=False):
        getattr(writer, f"add_{key}_token_id")(token_id)
    named = named_tokens(files)
    tokenizer, _ = complete_tokenizer(files, TOKENIZER_NAME)
    for name in _NAMED:
        token = named.get(f"{name}_token")
        if token is not None and (token_id := tokenizer.token_to_id(token.text)) is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    template = _chat_templates(files)
    if template:
        writer.add_chat_template(template)


def _chat_templates(files: Mapping[str, bytes]) -> list[dict[str, str]] | None:
    """Returns the templates by name, the usual one as "default"; None if there are none."""
    listed = tokenizer_config(files).get("chat_template")
    found: dict[str, str] = {}
    if isinstance(listed, str):
        found["default"] = listed
    elif isinstance(listed, list):
        found |= {str(one["name"]): str(one["template"]) for one in listed}
    for name, content in files.items():
        if name.startswith(f"{TEMPLATES_FOLDER}/"):
            found[Path(name).stem] = content.decode()
    if TEMPLATE_NAME in files:
        found["default"] = files[TEMPLATE_NAME].decode()
    return [{"name": name, "template": text} for name, text in found.items()] or None


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
    writer.close()


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _metadata(folder: Path) -> dict[str, Any]:
    return _json(folder / METADATA_NAME)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
