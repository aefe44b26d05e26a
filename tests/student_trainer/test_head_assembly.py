"""An output head put together from its stream, and every way in which the stream may be wrong."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from lectern_common.errors import LecternError, TeacherError, WrongModel
from protos import teacher_pb2
from student_trainer.head_assembly import assemble_head
from student_trainer.reply_assembly import DamagedReply

V, D = 3, 2
# Weights, then the bias.
VALUES = np.arange(V * D + V, dtype=np.float32)
MODEL = teacher_pb2.Model(
    fingerprint="the model", hidden_size=D, hidden_dtype=teacher_pb2.DTYPE_FLOAT32
)

Stream = list[teacher_pb2.OutputHeadReply]


def stream() -> Stream:
    """A right one, in two pieces."""
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
        (another_model, WrongModel, "not the expected the model"),
        (another_width, TeacherError, "asked for was"),
        (another_byte, DamagedReply, "checksum differs"),
        (lambda replies: replies[1:], TeacherError, "its piece misplaced"),
        (lambda replies: [replies[0], *replies], TeacherError, "its header misplaced"),
        (lambda replies: [*replies, replies[3]], TeacherError, "its trailer misplaced"),
        (lambda replies: [*replies[:3], *replies[2:]], TeacherError, "its piece misplaced"),
        (lambda replies: replies[:2] + replies[3:], TeacherError, "ended after 10 bytes"),
        (lambda replies: replies[:3], TeacherError, "ended after 36 bytes"),
        (lambda _: [], TeacherError, "ended after 0 bytes"),
    ],
)
def test_a_stream_that_is_not_as_it_must_be_is_refused(
    spoilt: Callable[[Stream], Stream], error: type[LecternError], said: str
) -> None:
    with pytest.raises(error, match=said):
        assemble_head(spoilt(stream()), MODEL, V)
