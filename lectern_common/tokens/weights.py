"""Hashes a model's stored weights, independent of the dtype that they are stored in.

Reads the safetensors files directly, without torch, so that the control plane can refuse a run
whose student is its teacher before anything starts.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from lectern_common.errors import CorruptData, NotFound
from lectern_common.words import inert_name

_FLOAT_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_BYTES_OF = {name: np.dtype(carrier).itemsize for name, carrier in _FLOAT_DTYPES.items()}
_BLOCK_VALUES = 1 << 22
_MAX_HEADER_BYTES = 100 << 20


def safetensors_files(folder: Path) -> list[Path]:
    """Returns the weight files of a model folder: model.safetensors, else those of its index.

    In the order of transformers, so that the hashed files are the loaded ones.

    Raises:
        NotFound: the folder has no safetensors weights; names a refused format that it has.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [folder / Path(name).name for name in names]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CorruptData(f"{index} is not a safetensors index: {error}") from None
        if not files or not all(Path(name).name and "\0" not in name for name in names):
            raise CorruptData(f"{index} is not a safetensors index: it names no files")
        return files
    refused = sorted(
        path.name for path in folder.glob("*") if path.suffix in {".bin", ".pt", ".pth", ".ckpt"}
    )
    why = (
        f"; {inert_name(refused[0])} is a pickle and is never loaded: convert it to safetensors"
        if refused
        else ""
    )
    raise NotFound(f"no model.safetensors in {folder}{why}")


def weights_sha256(files: list[Path], *, exact: bool = False) -> str:
    """Returns the hex SHA-256 of every stored tensor: name, shape, values rounded to bfloat16.

    The rounding makes a float32 checkpoint and its bfloat16 copy equal. Tensors are hashed in name
    order, so sharding does not matter. Takes about a second per gigabyte.

    Args:
        files: safetensors files, each tensor in one of them.
        exact: hash the stored bits and dtype instead, so that any changed value shows.

    Raises:
        CorruptData: a file is not safetensors, or is truncated.
    """
    tensors = sorted(entry for path in files for entry in _entries(path))
    digest = hashlib.sha256()
    for name, path, dtype, shape, start, stop in tensors:
        digest.update(json.dumps([name, shape]).encode())
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            carrier = _FLOAT_DTYPES.get(dtype)
            if exact:
                digest.update(dtype.encode())
            if start == stop:
                continue
            if carrier is None or exact:
                for first in range(start, stop, 4 * _BLOCK_VALUES):
                    digest.update(data[first : min(first + 4 * _BLOCK_VALUES, stop)])
                continue
            values = np.frombuffer(
                data, carrier, (stop - start) // np.dtype(carrier).itemsize, start
            )
            for first in range(0, len(values), _BLOCK_VALUES):
                block = values[first : first + _BLOCK_VALUES]
                digest.update((block if dtype == "BF16" else _bfloat16_bits(block)).tobytes())
            del values, block
    return digest.hexdigest()


def tensor_shapes(files: list[Path]) -> dict[str, list[int]]:
    """Returns the shape of every stored tensor by name, reading only the files' headers.

    Raises:
        CorruptData: a file is not safetensors, or is truncated.
    """
    return {name: shape for path in files for name, _, _, shape, _, _ in _entries(path)}


def cached_weights_sha256(files: list[Path]) -> str:
    """Returns weights_sha256, cached while no file's path, time or size changes.

    Raises:
        CorruptData: a file is not safetensors, or is truncated.
    """
    try:
        stats = [(path, path.stat()) for path in files]
    except OSError:
        return weights_sha256(files)
    return _weights_sha256_of(tuple((path, s.st_mtime_ns, s.st_size) for path, s in stats))


@lru_cache(maxsize=64)
def _weights_sha256_of(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    return weights_sha256([path for path, _, _ in stamps])


def _bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Returns the bfloat16 bit patterns, rounded to nearest even."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype("<u4")) >> 16
    return np.asarray(rounded, "<u2")


def _entries(path: Path) -> Iterator[tuple[str, Path, str, list[int], int, int]]:
    """Yields (name, file, dtype, shape, first byte, end byte) of each tensor, the end exclusive."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > _MAX_HEADER_BYTES:
                raise CorruptData(f"{path} is not a safetensors file")
            header = json.loads(file.read(header_bytes))
        size = path.stat().st_size
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not (isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets)):
                raise ValueError(f"the entry of {json.dumps(name)} has values of a wrong type")
            start, stop = (8 + header_bytes + offset for offset in offsets)
            if stop > size:
                raise CorruptData(f"{path} is truncated: {name} ends at byte {stop} of {size}")
            if start > stop or (stop - start) % _BYTES_OF.get(dtype, 1):
                raise ValueError(f"the entry of {json.dumps(name)} has impossible offsets")
            yield name, path, dtype, shape, start, stop
    except FileNotFoundError:
        raise NotFound(f"{path} is named in the index but missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptData(f"{path} is not a safetensors file: {error}") from None


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
