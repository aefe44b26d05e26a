"""The teacher's output head: its reply stream is whole or refused; the cache on disk."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lectern_common.errors import LecternError, TeacherError, WrongModel
from lectern_models.logits.output_head import HeadTransform, OutputHead
from protos import teacher_pb2
from student_trainer.teacher.head import (
    assemble_head,
    cached_head_path,
    read_cached_head,
    write_cached_head,
)
from student_trainer.teacher.reply import DamagedReply

V, D = 3, 2
# Weights, then the bias.
VALUES = np.arange(V * D + V, dtype=np.float32)
MODEL = teacher_pb2.Model(
    fingerprint="the model", hidden_size=D, hidden_dtype=teacher_pb2.DTYPE_FLOAT32
)

Stream = list[teacher_pb2.OutputHeadReply]


def stream() -> Stream:
    """Returns a valid stream, in two pieces."""
    data = VALUES.astype("<f4").tobytes()
    header = teacher_pb2.OutputHeadHeader(
        fingerprint="the model",
        dtype=teacher_pb2.DTYPE_FLOAT32,
        vocab_size=V,
        hidden_size=D,
        total_bytes=len(data),
        transform=teacher_pb2.HeadTransform(scale=2.0, divisor=4.0, soft_cap=30.0, has_bias=True),
    )
    trailer = teacher_pb2.OutputHeadTrailer(crc32=zlib.crc32(data))
    return [
        teacher_pb2.OutputHeadReply(header=header),
        teacher_pb2.OutputHeadReply(piece=data[:10]),
        teacher_pb2.OutputHeadReply(piece=data[10:]),
        teacher_pb2.OutputHeadReply(trailer=trailer),
    ]


def test_the_head_is_what_was_sent() -> None:
    head = assemble_head(stream(), MODEL, V)
    np.testing.assert_array_equal(head.weight_VD.numpy(), VALUES[: V * D].reshape(V, D))
    assert head.bias_V is not None
    np.testing.assert_array_equal(head.bias_V.numpy(), VALUES[V * D :])
    transform = head.transform
    assert (transform.scale, transform.divisor, transform.soft_cap) == (2.0, 4.0, 30.0)


def another_model(replies: Stream) -> Stream:
    replies[0].header.fingerprint = "another"
    return replies


def another_width(replies: Stream) -> Stream:
    replies[0].header.vocab_size = V + 1
    return replies


def another_byte(replies: Stream) -> Stream:
    replies[1].piece = b"\xff" + replies[1].piece[1:]
    return replies


@pytest.mark.parametrize(
    ("spoilt", "error", "said"),
    [
        (another_model, WrongModel, "expected the model"),
        (another_width, TeacherError, r"total_bytes\) .*; expected \("),
        (another_byte, DamagedReply, "checksum differs"),
        (lambda replies: replies[1:], TeacherError, "its piece in the wrong place"),
        (lambda replies: [replies[0], *replies], TeacherError, "its header in the wrong place"),
        (lambda replies: [*replies, replies[3]], TeacherError, "its trailer in the wrong place"),
        (lambda replies: [*replies[:3], *replies[2:]], TeacherError, "its piece in the wrong pl"),
        (lambda replies: replies[:2] + replies[3:], TeacherError, "ended after 10 bytes"),
        (lambda replies: replies[:3], TeacherError, "ended after 36 bytes"),
        (lambda _: [], TeacherError, "ended after 0 bytes"),
    ],
)
def test_an_invalid_stream_is_refused(
    spoilt: Callable[[Stream], Stream], error: type[LecternError], said: str
) -> None:
    with pytest.raises(error, match=said):
        assemble_head(spoilt(stream()), MODEL, V)


def test_a_cached_head_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    transform = HeadTransform(scale=0.5, divisor=3.0, soft_cap=30.0)
    head = OutputHead(torch.randn(7, 3).bfloat16(), torch.randn(7).bfloat16(), transform)
    path = cached_head_path(tmp_path, "f" * 64, 7)
    write_cached_head(path, head)
    again = read_cached_head(path)
    assert again is not None
    assert torch.equal(again.weight_VD, head.weight_VD)
    assert again.bias_V is not None
    assert head.bias_V is not None
    assert torch.equal(again.bias_V, head.bias_V)
    assert again.transform == transform
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_head_without_bias_is_read_back_without_one(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    write_cached_head(path, OutputHead(torch.randn(4, 2)))
    again = read_cached_head(path)
    assert again is not None
    assert again.bias_V is None
    assert again.transform == HeadTransform()


def test_an_absent_head_is_none(tmp_path: Path) -> None:
    assert read_cached_head(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_head_counts_as_absent(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "head.safetensors"
    write_cached_head(path, OutputHead(torch.randn(8, 4)))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    elif damage == "truncate":
        del data[-4:]
    elif damage == "empty":
        data.clear()
    else:
        data = bytearray(b"not safetensors at all")
    path.write_bytes(bytes(data))
    assert read_cached_head(path) is None


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path: Path) -> None:
    (tmp_path / "heads").write_text("a file where the folder should be")
    path = cached_head_path(tmp_path, "f" * 64, 4)
    write_cached_head(path, OutputHead(torch.randn(4, 2)))
    assert read_cached_head(path) is None
