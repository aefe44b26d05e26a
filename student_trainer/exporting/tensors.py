"""The tensors of a GGUF file: their names, their order of rows, and what each is stored as."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from lectern_common.errors import CorruptData, Incompatible
from lectern_common.stages.export import GgufType
from lectern_common.tokens.weights import tensor_shapes
from student_trainer.exporting.architectures import ARCHITECTURES

_Q8_BLOCK = 32  # numbers that share a scale
_LARGEST_F16 = 65504.0
_LARGEST_F32 = float(np.finfo(np.float32).max)
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the model, and its place in the file.

    Attributes:
        source: its name in the model.
        name: its name in the file.
        shape: as in the model.
        kind: "F32", "F16" or "Q8_0".
    """

    source: str
    name: str
    shape: tuple[int, ...]
    kind: str


def planned_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: Any, gguf_type: GgufType
) -> list[StoredTensor]:
    """Returns the tensors of the file, in the order in which they are written.

    Norms and biases stay in float32. A matrix whose rows are no multiple of 32 numbers long stays
    in f16 in a q8_0 file.

    Args:
        shapes: name -> shape of the model's tensors. A tied head may be among them.
        config: the model's.
        gguf_type: what matrices are stored as.

    Raises:
        Incompatible: the model has a tensor that llama.cpp does not know.
    """
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    planned = []
    for source, shape in shapes.items():
        base, _, suffix = source.rpartition(".")
        name = f"{names.get_name(base)}.{suffix}"
        if not _is_known(name, suffix, config):
            raise Incompatible(
                f"the student has a tensor {source}, which llama.cpp does not know for "
                f"{config.model_type}; export it with --format safetensors"
            )
        if name == _HEAD and config.tie_word_embeddings:
            continue
        planned.append(StoredTensor(source, name, shape, _kind(shape, gguf_type)))
    if not any(tensor.name == _EMBEDDING for tensor in planned):
        raise CorruptData("the student's weights have no token embedding")
    return sorted(planned, key=_place)


def _is_known(name: str, suffix: str, config: Any) -> bool:
    if name.startswith("None.") or suffix not in ("weight", "bias"):
        return False
    has_bias = ARCHITECTURES[config.model_type].has_qkv_bias
    return suffix == "weight" or (
        has_bias and name.split(".")[-2] in ("attn_q", "attn_k", "attn_v")
    )


def _kind(shape: tuple[int, ...], gguf_type: GgufType) -> str:
    if len(shape) < 2:
        return "F32"
    return "F16" if gguf_type == "f16" or shape[-1] % _Q8_BLOCK else "Q8_0"


def _place(tensor: StoredTensor) -> tuple[int, int, str]:
    """Embedding first, then layer by layer, then what follows the layers."""
    parts = tensor.name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), tensor.name
    return (0 if tensor.name == _EMBEDDING else 2), 0, tensor.name


def encoded(values: np.ndarray, tensor: StoredTensor, config: Any) -> np.ndarray:
    """Returns the numbers of a tensor as the file holds them: float32, float16, or bytes of blocks.

    Args:
        values: float32, as in the model.
        tensor: its place in the file.
        config: the model's.

    Raises:
        Incompatible: a number is too large for 16 bits, or not finite.
    """
    import gguf

    largest = float(np.abs(values).max(initial=0.0))
    # The scale of a q8_0 block is the largest of its numbers over 127, in 16 bits.
    limit = {"F16": _LARGEST_F16, "Q8_0": _LARGEST_F16 * 127, "F32": _LARGEST_F32}
    if not largest <= limit[tensor.kind]:
        raise Incompatible(
            f"{tensor.source} holds {largest:g}, which {tensor.kind.lower()} cannot store; export "
            "the student with --format safetensors"
        )
    kind = gguf.GGMLQuantizationType[tensor.kind]
    ordered = np.ascontiguousarray(_in_file_order(values, tensor, config))
    return np.ascontiguousarray(gguf.quants.quantize(ordered, kind))


def decoded(data: np.ndarray, tensor: StoredTensor, config: Any) -> np.ndarray:
    """Returns what a file's bytes mean to the model, float32 in the model's order of rows."""
    import gguf

    values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[tensor.kind])
    return _in_model_order(values.reshape(tensor.shape), tensor, config)


def _in_file_order(values: np.ndarray, tensor: StoredTensor, config: Any) -> np.ndarray:
    architecture = ARCHITECTURES[config.model_type]
    if architecture.adds_one_to_norms and tensor.name.endswith("norm.weight"):
        return values + np.float32(1)
    heads = _heads(tensor, config) if architecture.rotates_in_pairs else None
    if heads is None:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _in_model_order(values: np.ndarray, tensor: StoredTensor, config: Any) -> np.ndarray:
    architecture = ARCHITECTURES[config.model_type]
    if architecture.adds_one_to_norms and tensor.name.endswith("norm.weight"):
        return values - np.float32(1)
    heads = _heads(tensor, config) if architecture.rotates_in_pairs else None
    if heads is None:
        return values
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _heads(tensor: StoredTensor, config: Any) -> int | None:
    """Returns how many heads the rows of a query or key matrix are for; None for other tensors."""
    kind = tensor.name.split(".")[-2]
    if kind == "attn_q":
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if kind == "attn_k" else None


class ModelTensors:
    """The tensors of a model's safetensors files, read one at a time."""

    def __init__(self, files: list[Path]) -> None:
        """Raises CorruptData if a file is not a safetensors file."""
        self.shapes = {name: tuple(shape) for name, shape in tensor_shapes(files).items()}
        self._file_of = {name: file for file in files for name in tensor_shapes([file])}

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor's numbers as float32. Raises CorruptData."""
        file = self._file_of[name]
        try:
            with safe_open(file, framework="pt") as opened:
                values: np.ndarray = opened.get_tensor(name).float().numpy()
        except Exception as error:  # safetensors' own class derives from Exception
            raise CorruptData(f"cannot read {name} in {file}: {error}") from None
        return values
