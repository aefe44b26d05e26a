"""The teacher's output head: assembled from its reply stream, checked, and cached on disk.

    CACHE/heads/<fingerprint>-<vocab_size>.safetensors

Cached, so that it crosses the wire once per machine and not once per run. Entries are named by
fingerprint, so they never go stale. An entry that cannot be read, or whose checksum differs, counts
as absent; if the cache cannot be written, the run goes on without it.
"""

import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lectern_common.errors import TeacherError
from lectern_common.files import replaced_file
from lectern_common.logs import get_logger
from lectern_common.wire.formats import Widths
from lectern_models.logits.output_head import HeadTransform, OutputHead
from protos import teacher_pb2
from student_trainer.teacher.reply import DamagedReply, require_fingerprint, tensor_of

_log = get_logger()


def assemble_head(
    replies: Iterable[teacher_pb2.OutputHeadReply], model: teacher_pb2.Model, vocab_size: int
) -> OutputHead:
    """Reads the stream to its end; returns the head [vocab_size, hidden size] of `model`.

    Raises:
        WrongModel: another model answers.
        DamagedReply: the checksum differs.
        TeacherError: header, order or byte count are wrong.
        grpc.RpcError: the stream broke.
    """
    header: teacher_pb2.OutputHeadHeader | None = None
    trailer: teacher_pb2.OutputHeadTrailer | None = None
    buffer = np.empty(0, np.uint8)
    filled = crc = 0
    for reply in replies:
        part = reply.WhichOneof("part")
        if part == "header" and header is None:
            header = reply.header
            buffer = np.empty(_bytes_to_come(header, model, vocab_size), np.uint8)
        elif part == "piece" and filled + len(reply.piece) <= len(buffer):
            piece = np.frombuffer(reply.piece, np.uint8)
            buffer[filled : filled + len(piece)] = piece
            filled, crc = filled + len(piece), zlib.crc32(piece.data, crc)
        elif part == "trailer" and trailer is None:
            trailer = reply.trailer
        else:
            raise TeacherError(f"the teacher's output head has its {part} in the wrong place")
    if header is None or trailer is None or filled != len(buffer):
        raise TeacherError(f"the teacher's output head ended after {filled} bytes")
    if trailer.crc32 != crc:
        raise DamagedReply("the teacher's output head was damaged in transit: its checksum differs")
    _log.info("output_head_received", bytes=filled)
    values = tensor_of(buffer, header.dtype)
    num_weights = vocab_size * model.hidden_size
    theirs = header.transform
    return OutputHead(
        values[:num_weights].view(vocab_size, model.hidden_size),
        values[num_weights:] if theirs.has_bias else None,
        HeadTransform(theirs.scale, theirs.divisor, theirs.soft_cap or None),
    )


def _bytes_to_come(
    header: teacher_pb2.OutputHeadHeader, model: teacher_pb2.Model, vocab_size: int
) -> int:
    """Returns the number of bytes after the header. Raises WrongModel or TeacherError."""
    require_fingerprint(header.fingerprint, model.fingerprint)
    widths = Widths.of_model(model, vocab_size)
    num_bytes = widths.head_bytes(has_bias=header.transform.has_bias)
    theirs = (header.dtype, header.vocab_size, header.hidden_size, header.total_bytes)
    ours = (model.hidden_dtype, vocab_size, model.hidden_size, num_bytes)
    if theirs != ours:
        raise TeacherError(
            "the teacher's output head has (dtype, vocab_size, hidden_size, "
            f"total_bytes) {theirs}; expected {ours}"
        )
    return num_bytes


def cached_head_path(cache_root: Path, fingerprint: str, vocab_size: int) -> Path:
    return cache_root / "heads" / f"{fingerprint}-{vocab_size}.safetensors"


def read_cached_head(path: Path) -> OutputHead | None:
    """Returns the head as it was stored, on the CPU; None if there is no intact one."""
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
    """Stores a head in the cache. A failure is only logged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not fsynced: the checksum finds a head that is not whole.
        write_head(path, head, durable=False)
    except (OSError, SafetensorError) as error:
        _log.warning("head_not_cached", path=str(path), error=str(error))


def write_head(path: Path, head: OutputHead, *, durable: bool = True) -> None:
    """Stores a head; it appears whole or not at all. Raises OSError or SafetensorError."""
    tensors = {"weight": head.weight_VD.contiguous()}
    if head.bias_V is not None:
        tensors["bias"] = head.bias_V.contiguous()
    facts = {"crc32": _crc32(head.weight_VD, head.bias_V), "transform": asdict(head.transform)}
    with replaced_file(path, durable=durable) as hidden:
        safetensors.torch.save_file(tensors, hidden, metadata={"lectern": json.dumps(facts)})


def _crc32(weight: Tensor, bias: Tensor | None) -> int:
    crc = 0
    for part in (weight, bias):
        if part is not None:
            crc = zlib.crc32(part.contiguous().view(torch.uint8).numpy().data, crc)
    return crc
