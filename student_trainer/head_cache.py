"""The teacher's output head on disk, so that it crosses the wire once a machine and not once a run.

    CACHE/heads/<fingerprint>-<vocab_size>.safetensors

Fingerprints name answers, so an entry never goes stale. An entry that cannot be read, or whose
checksum differs, counts as absent; a cache that cannot be written is done without.
"""

import json
import zlib
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import structlog
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lectern_common.files import replaced_file
from lectern_models.output_head import HeadTransform, OutputHead

_log = structlog.get_logger()


def cached_head_path(cache_root: Path, fingerprint: str, vocab_size: int) -> Path:
    return cache_root / "heads" / f"{fingerprint}-{vocab_size}.safetensors"


def read_cached_head(path: Path) -> OutputHead | None:
    """Returns the head as it was stored, on the CPU, or None where there is no intact one."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["lectern"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weight, bias = tensors["weight"], tensors.get("bias")
        if _crc32(weight, bias) != facts["crc32"]:
            _log.warning("cached_head_damaged", path=str(path))
            return None
        return OutputHead(weight, bias, HeadTransform(**facts["transform"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _log.warning("cached_head_unreadable", path=str(path), error=str(error))
        return None


def write_cached_head(path: Path, head: OutputHead) -> None:
    """Stores a head; it appears whole or not at all. A failure is logged, and that is all."""
    tensors = {"weight": head.weight_VD}
    if head.bias_V is not None:
        tensors["bias"] = head.bias_V
    facts = {"crc32": _crc32(head.weight_VD, head.bias_V), "transform": asdict(head.transform)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not fsynced: a head that is not whole is found by its checksum.
        with replaced_file(path, durable=False) as hidden:
            safetensors.torch.save_file(tensors, hidden, metadata={"lectern": json.dumps(facts)})
    except (OSError, SafetensorError) as error:
        _log.warning("head_not_cached", path=str(path), error=str(error))


def _crc32(weight: Tensor, bias: Tensor | None) -> int:
    crc = 0
    for part in (weight, bias):
        if part is not None:
            crc = zlib.crc32(part.contiguous().view(torch.uint8).numpy().data, crc)
    return crc
