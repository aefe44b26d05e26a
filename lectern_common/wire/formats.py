"""The wire formats of a teacher's answers: representations, dtypes, row layouts, masks.

Legend: N rows (asked positions), V vocabulary, D hidden size, K top-k, R records of sampled rows.

numpy has no bfloat16, so it travels and is held here as uint16 bit patterns; code that computes
with it views it as bfloat16.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from lectern_common.errors import InvalidRequest, RepresentationNotOffered
from protos import teacher_pb2

PROTOCOL_VERSION = 1

# Target payload bytes of a piece of a reply stream: over loopback, 0.5-2 MiB pieces move
# 1-2.5 GB/s, 64 KiB pieces a third of that.
PIECE_BYTES = 1 << 20

# Largest message in either direction. A piece holds whole rows, and one dense row of a large
# vocabulary is 0.6 MB; a request holds only token ids.
MAX_MESSAGE_BYTES = 16 << 20

# dtype name -> numpy dtype that carries its bits, little-endian.
CARRIERS: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}

# dtype name -> its number in teacher.proto.
DTYPES: dict[str, teacher_pb2.DType] = {
    "float32": teacher_pb2.DTYPE_FLOAT32,
    "float16": teacher_pb2.DTYPE_FLOAT16,
    "bfloat16": teacher_pb2.DTYPE_BFLOAT16,
}
DTYPE_NAMES = {number: name for name, number in DTYPES.items()}


def top_k_record(k: int) -> np.dtype:
    """Returns the structured dtype of one TOP_K row: 8 k + 8 bytes, packed.

    Fields: `logits` float32 [k], descending; `ids` uint32 [k]; `log_rest_t` float32, the logsumexp
    of logits / temperature over the ids outside the k, -inf if there are none; `log_normalizer_t`
    float32, the same over all ids.
    """
    return np.dtype(
        [
            ("logits", "<f4", (k,)),
            ("ids", "<u4", (k,)),
            ("log_rest_t", "<f4"),
            ("log_normalizer_t", "<f4"),
        ]
    )


# What a SAMPLED record can hold: 24 bits of id, 8 bits of count - 1.
MAX_SAMPLED_ID = (1 << 24) - 1
MAX_DRAWS = 256


def sampled_record() -> np.dtype:
    """Returns the structured dtype of one SAMPLED record, 8 bytes: one distinct id of a row.

    Fields: `id_and_count` uint32, the id in the low 24 bits and its count - 1 in the high 8;
    `log_prob` float32, the id's log-probability at the requested temperature.
    """
    return np.dtype([("id_and_count", "<u4"), ("log_prob", "<f4")])


def pack_sampled(
    ids_R: npt.NDArray[np.integer],
    counts_R: npt.NDArray[np.integer],
    log_probs_R: npt.NDArray[np.floating],
) -> np.ndarray:
    """Returns the records, `sampled_record()` [R].

    Raises:
        InvalidRequest: an id is not 0 to MAX_SAMPLED_ID, or a count is not 1 to MAX_DRAWS.
    """
    if len(ids_R) and (int(ids_R.min()) < 0 or int(ids_R.max()) > MAX_SAMPLED_ID):
        raise InvalidRequest(
            f"sampled answers hold only ids up to {MAX_SAMPLED_ID}; request hidden or top_k",
            field="vocab_size",
        )
    if len(counts_R) and (int(counts_R.min()) < 1 or int(counts_R.max()) > MAX_DRAWS):
        raise InvalidRequest(
            f"sampled answers hold only counts of 1 to {MAX_DRAWS}; request fewer draws",
            field="representation.num_draws",
        )
    records_R = np.empty(len(ids_R), sampled_record())
    counts = counts_R.astype(np.uint32) - np.uint32(1)
    records_R["id_and_count"] = ids_R.astype(np.uint32) | (counts << np.uint32(24))
    records_R["log_prob"] = log_probs_R
    return records_R


def unpack_sampled(
    records_R: np.ndarray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns (ids, counts, log-probabilities), each [R], of `sampled_record()` [R]."""
    words = records_R["id_and_count"]
    ids_R = (words & np.uint32(MAX_SAMPLED_ID)).astype(np.int64)
    counts_R = (words >> np.uint32(24)).astype(np.int64) + 1
    return ids_R, counts_R, np.ascontiguousarray(records_R["log_prob"], np.float32)


RepresentationName = Literal["dense", "hidden", "top_k", "sampled"]


@dataclass(frozen=True)
class Widths:
    """The sizes that determine the bytes of a row, besides the representation.

    Attributes:
        vocab_size: V, as requested.
        hidden_size: D.
        hidden_dtype: name of the dtype of hidden states and of the output head.
    """

    vocab_size: int
    hidden_size: int
    hidden_dtype: str

    @classmethod
    def of_model(cls, model: teacher_pb2.Model, vocab_size: int) -> "Widths":
        """Returns the widths for a teacher that is asked for `vocab_size` ids."""
        hidden_dtype = DTYPE_NAMES.get(model.hidden_dtype, f"dtype {model.hidden_dtype}")
        return cls(vocab_size, model.hidden_size, hidden_dtype)

    @property
    def hidden_bytes(self) -> int:
        """Bytes of the hidden state of one position. Raises KeyError if its dtype is unknown."""
        return self.hidden_size * CARRIERS[self.hidden_dtype].itemsize

    def head_bytes(self, *, has_bias: bool) -> int:
        """Returns the bytes of the output head. Raises KeyError like `hidden_bytes`."""
        values = self.vocab_size * (self.hidden_size + has_bias)
        return values * CARRIERS[self.hidden_dtype].itemsize


@dataclass(frozen=True)
class Format:
    """The wire format of a representation: one row per asked position.

    Attributes:
        enum: its number in teacher.proto.
        row_bytes: bytes of a row, from the Representation and the widths; the most if rows differ.
        kd_is: describes a divergence computed from it; parameters in braces.
        parameters: the fields of Representation that it uses; the others stay None.
        dtype: name of the dtype in the header; None means the model's `hidden_dtype`.
        rows_differ: rows differ in length, and pieces say how many records each row has.
        needs_head: the student multiplies a row by the teacher's output head.
    """

    enum: teacher_pb2.RepresentationKind
    row_bytes: "Callable[[Representation, Widths], int]"
    kd_is: str
    parameters: tuple[str, ...] = ()
    dtype: str | None = "float32"
    rows_differ: bool = False
    needs_head: bool = False


# Every representation. A new one needs an entry here, its rows in
# teacher_server/engine/representations.py, and its targets in student_trainer/teacher/reply.py.
FORMATS: dict[str, Format] = {
    "dense": Format(
        enum=teacher_pb2.REPRESENTATION_DENSE,
        row_bytes=lambda _, widths: CARRIERS["float32"].itemsize * widths.vocab_size,
        kd_is="exact",
    ),
    "hidden": Format(
        enum=teacher_pb2.REPRESENTATION_HIDDEN,
        row_bytes=lambda _, widths: widths.hidden_bytes,
        kd_is="exact",
        dtype=None,
        needs_head=True,
    ),
    "top_k": Format(
        enum=teacher_pb2.REPRESENTATION_TOP_K,
        row_bytes=lambda asked, _: top_k_record(asked.top_k or 0).itemsize,
        kd_is="lower bound: over the teacher's top {top_k} and the rest as one",
        parameters=("top_k",),
    ),
    "sampled": Format(
        enum=teacher_pb2.REPRESENTATION_SAMPLED,
        # An id drawn several times is sent once.
        row_bytes=lambda asked, widths: (
            sampled_record().itemsize * min(asked.num_draws or 0, widths.vocab_size)
        ),
        kd_is="unbiased estimate from {num_draws} draws a position; may be below 0",
        parameters=("num_draws", "seed"),
        rows_differ=True,
    ),
}
NAMES = {form.enum: name for name, form in FORMATS.items()}


@dataclass(frozen=True)
class Representation:
    """What to request from a teacher for each position.

    Attributes:
        kind: a name in FORMATS.
        top_k: outcomes to keep; only for "top_k".
        num_draws: draws per position; only for "sampled".
        seed: of the draws; only for "sampled"; None is sent as 0.

    Raises:
        RepresentationNotOffered: the kind does not exist.
        InvalidRequest: a parameter is set that the kind does not use.
    """

    kind: str
    top_k: int | None = None
    num_draws: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in FORMATS:
            raise RepresentationNotOffered(
                f"representation {self.kind} is not one of {', '.join(FORMATS)}"
            )
        for name in _PARAMETERS:
            if getattr(self, name) is not None and name not in self.format.parameters:
                raise InvalidRequest(
                    f"{name} has no effect with representation {self.kind}",
                    field=f"representation.{name}",
                )

    @classmethod
    def of_message(cls, message: teacher_pb2.Representation) -> "Representation":
        """Returns the representation of a request; does not check its numbers.

        Raises:
            InvalidRequest: the kind does not exist, or does not use a parameter that is set.
        """
        kind = NAMES.get(message.kind)
        if kind is None:
            raise InvalidRequest(
                f"representation.kind {message.kind} is not one of {', '.join(FORMATS)}",
                field="representation.kind",
            )
        numbers = {name: getattr(message, name) for name in _PARAMETERS}
        taken = FORMATS[kind].parameters
        return cls(kind, **{name: n for name, n in numbers.items() if n or name in taken})

    def message(self) -> teacher_pb2.Representation:
        """Returns the message for a request."""
        numbers = {name: getattr(self, name) or 0 for name in self.format.parameters}
        return teacher_pb2.Representation(kind=self.format.enum, **numbers)

    @property
    def format(self) -> Format:
        """Its wire format."""
        return FORMATS[self.kind]

    @property
    def kd_is(self) -> str:
        """Describes a divergence computed from it (loss/kd, val/kl), for people."""
        return self.format.kd_is.format(top_k=self.top_k, num_draws=self.num_draws)

    def row_bytes(self, widths: Widths) -> int:
        """Returns the bytes of a row; the most it can have if rows differ."""
        return self.format.row_bytes(self, widths)

    def header_row_bytes(self, widths: Widths) -> int:
        """Returns a row's bytes as the reply's header has them: 0 if rows differ."""
        return 0 if self.format.rows_differ else self.row_bytes(widths)

    def dtype(self, widths: Widths) -> str:
        """Returns the name of the dtype in the reply's header."""
        return self.format.dtype or widths.hidden_dtype


_PARAMETERS = tuple(field.name for field in fields(Representation) if field.name != "kind")


def offered_by(model: teacher_pb2.Model) -> list[str]:
    """Returns the representations that a teacher offers, in the order of FORMATS."""
    offers = {offer.kind for offer in model.representations if offer.offered}
    return [name for name, form in FORMATS.items() if form.enum in offers]


def pack_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Returns one bit per token, least significant bit first, zero-padded to whole bytes."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpack_mask(data: bytes, num_tokens: int) -> npt.NDArray[np.bool_]:
    """Returns the bool mask [num_tokens] that `pack_mask` packed.

    Raises:
        InvalidRequest: the length is not ceil(num_tokens / 8) bytes, or a padding bit is set.
    """
    expected = (num_tokens + 7) // 8
    if len(data) != expected:
        raise InvalidRequest(
            f"position_mask has {len(data)} bytes, but {num_tokens} tokens need {expected}",
            field="position_mask",
        )
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[num_tokens:].any():
        raise InvalidRequest(
            f"position_mask sets a bit beyond token {num_tokens - 1}", field="position_mask"
        )
    return bits[:num_tokens].astype(bool)
