"""Turns a teacher's targets into the bytes of a record, and those bytes back into targets.

Legend: N rows (asked positions), V the record's vocabulary, D the teacher's hidden size, K top-k,
R distinct ids drawn, of all rows.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lectern_common.errors import CorruptData, TeacherError
from lectern_common.teacher.record.bits import (
    bits_per_id,
    log_prob_codes,
    log_probs_of,
    pack_bits,
    packed_bytes,
    unpack_bits,
)
from lectern_common.teacher.record.manifest import RecordFormat
from lectern_common.wire.formats import DTYPES
from lectern_models.logits.output_head import OutputHead
from student_trainer.targets import HiddenTargets, SampledTargets, TeacherTargets, TopKTargets
from student_trainer.teacher.reply import tensor_of

_E4M3 = torch.float8_e4m3fn
_E4M3_MAX = 448.0

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RowMeaning:
    """What the bytes of a part mean, besides its format.

    Attributes:
        vocab_size: V.
        hidden_size: D.
        hidden_dtype: of the teacher's hidden states, by name.
        temperature: that log-probabilities are at; 1 with hidden states, which hold for any.
        head: of the teacher; only with hidden states.
    """

    vocab_size: int
    hidden_size: int
    hidden_dtype: str
    temperature: float = 1.0
    head: OutputHead | None = None


class Codec(Protocol):
    """The rows of one format."""

    def encode(self, targets: TeacherTargets) -> Bytes:
        """Returns the bytes of one sequence's rows. Raises TeacherError for other targets."""
        ...

    def decode(self, data: Bytes, num_rows: int) -> TeacherTargets:
        """Returns the targets of one sequence's rows. Raises CorruptData if they cannot be."""
        ...


def codec_of(form: RecordFormat, meaning: RowMeaning) -> Codec:
    """Returns the codec of a format."""
    if form.name == "hidden":
        return _Hidden(meaning)
    if form.name == "hidden_fp8":
        return _HiddenFp8(meaning)
    if form.name == "top_k":
        return _TopK(meaning, form.top_k or 0, form.log_prob_bits or 16)
    return _Sampled(meaning, form.num_draws or 0, form.log_prob_bits or 16)


def _rows_of(data: Bytes, num_rows: int, row_bytes: int) -> Bytes:
    if len(data) != num_rows * row_bytes:
        raise CorruptData(f"{num_rows} recorded rows of {row_bytes} bytes have {len(data)} bytes")
    return data.reshape(num_rows, row_bytes)


@dataclass(frozen=True)
class _Hidden:
    """D values in the teacher's dtype, little-endian: the bytes that it served."""

    meaning: RowMeaning

    def encode(self, targets: TeacherTargets) -> Bytes:
        hidden_ND = _hidden_of(targets)
        return hidden_ND.contiguous().view(torch.uint8).numpy().ravel()

    def decode(self, data: Bytes, num_rows: int) -> TeacherTargets:
        meaning = self.meaning
        _rows_of(data, num_rows, len(data) // max(1, num_rows))
        values = tensor_of(data.copy(), DTYPES[meaning.hidden_dtype])
        return _hidden_targets(values.view(num_rows, meaning.hidden_size), meaning)


@dataclass(frozen=True)
class _HiddenFp8:
    """An exponent e (int8), then D values in float8 e4m3; a value stands for itself times 2^e.

    e is the least for which the row's largest magnitude is at most 448. Multiplying by a power of
    two rounds nothing, so a value is off by at most 1/16 of itself, or 2^(e - 10) near 0.
    """

    meaning: RowMeaning

    def encode(self, targets: TeacherTargets) -> Bytes:
        hidden_ND = _hidden_of(targets).float()
        largest_N = hidden_ND.abs().amax(-1).clamp(min=2.0**-100)
        exponent_N = torch.ceil(torch.log2(largest_N / _E4M3_MAX))
        # log2 is rounded: a value just above a power of two must not pass the largest.
        exponent_N += (largest_N > torch.exp2(exponent_N) * _E4M3_MAX).float()
        exponent_N = exponent_N.clamp(-127, 127)
        scaled_ND = hidden_ND * torch.exp2(-exponent_N)[:, None]
        rows_NB = torch.cat(
            [
                exponent_N.to(torch.int8).view(torch.uint8)[:, None],
                scaled_ND.to(_E4M3).view(torch.uint8),
            ],
            dim=-1,
        )
        return rows_NB.numpy().ravel()

    def decode(self, data: Bytes, num_rows: int) -> TeacherTargets:
        rows_NB = torch.from_numpy(_rows_of(data, num_rows, self.meaning.hidden_size + 1).copy())
        exponent_N = rows_NB[:, 0].view(torch.int8).float()
        values_ND = rows_NB[:, 1:].contiguous().view(_E4M3).float()
        if not bool(values_ND.isfinite().all()):
            raise CorruptData("a recorded hidden state is not finite")
        hidden_ND = values_ND * torch.exp2(exponent_N)[:, None]
        dtype: torch.dtype = getattr(torch, self.meaning.hidden_dtype)
        # A value near the dtype's largest may have been rounded up to beyond it.
        most = torch.finfo(dtype).max
        return _hidden_targets(hidden_ND.clamp(-most, most).to(dtype), self.meaning)


@dataclass(frozen=True)
class _TopK:
    """K ids, bit-packed; K codes of log-probabilities, falling; the log of the rest's mass (f32).

    The mass of the rest is stored as the teacher sent it. On reading, the K probabilities are
    scaled so that they and the rest sum to 1: what rounding took from them would otherwise count
    as a difference between teacher and student.
    """

    meaning: RowMeaning
    k: int
    bits: int

    def encode(self, targets: TeacherTargets) -> Bytes:
        if not isinstance(targets, TopKTargets) or targets.ids_NK.shape[-1] != self.k:
            raise TeacherError(f"the teacher sent {type(targets).__name__}; expected top {self.k}")
        normalizer_N1 = targets.log_normalizer_t_N.double()[:, None]
        log_probs_NK = targets.logits_NK.double() / targets.temperature - normalizer_N1
        log_rest_N = targets.log_rest_t_N.double() - normalizer_N1[:, 0]
        parts = [
            pack_bits(targets.ids_NK.numpy(), bits_per_id(self.meaning.vocab_size)),
            _bytes_of(log_prob_codes(log_probs_NK.numpy(), self.bits)),
            _bytes_of(log_rest_N.clamp(max=0.0).numpy().astype("<f4")[:, None]),
        ]
        return np.concatenate(parts, axis=-1).ravel()

    def decode(self, data: Bytes, num_rows: int) -> TeacherTargets:
        meaning, k = self.meaning, self.k
        bits = bits_per_id(meaning.vocab_size)
        num_ids, num_codes = packed_bytes(k, bits), k * self.bits // 8
        rows_NB = _rows_of(data, num_rows, num_ids + num_codes + 4)
        ids_NK = unpack_bits(rows_NB[:, :num_ids], k, bits)
        codes_NK = _values_of(rows_NB[:, num_ids : num_ids + num_codes], f"<u{self.bits // 8}")
        log_rest_N = _values_of(rows_NB[:, -4:], "<f4")[:, 0].astype(np.float64)
        if int(ids_NK.max()) >= meaning.vocab_size or np.isnan(log_rest_N).any():
            raise CorruptData("a recorded row has an id beyond the vocabulary, or no mass")
        log_probs_NK = _sharing(log_probs_of(codes_NK, self.bits), log_rest_N)
        return TopKTargets(
            logits_NK=torch.from_numpy((log_probs_NK * meaning.temperature).astype(np.float32)),
            ids_NK=torch.from_numpy(ids_NK),
            log_rest_t_N=torch.from_numpy(log_rest_N.astype(np.float32)),
            log_normalizer_t_N=torch.zeros(num_rows),
            temperature=meaning.temperature,
            vocab_size=meaning.vocab_size,
        )


@dataclass(frozen=True)
class _Sampled:
    """How many ids each row has, less 1 (uint8 [N]); then of all rows the ids, bit-packed, their
    counts less 1 (uint8 [R]), and the codes of their log-probabilities."""

    meaning: RowMeaning
    num_draws: int
    bits: int

    def encode(self, targets: TeacherTargets) -> Bytes:
        if not isinstance(targets, SampledTargets) or targets.num_draws != self.num_draws:
            raise TeacherError(
                f"the teacher sent {type(targets).__name__}; expected {self.num_draws} draws"
            )
        lengths_N = np.diff(targets.row_starts)
        bits = bits_per_id(self.meaning.vocab_size)
        parts = [
            (lengths_N - 1).astype(np.uint8),
            pack_bits(targets.ids_R.numpy()[None], bits)[0],
            (targets.counts_R.numpy() - 1).astype(np.uint8),
            _bytes_of(log_prob_codes(targets.log_probs_R.numpy(), self.bits)),
        ]
        return np.concatenate(parts)

    def decode(self, data: Bytes, num_rows: int) -> TeacherTargets:
        meaning = self.meaning
        lengths_N = data[:num_rows].astype(np.int64) + 1
        row_starts = np.concatenate([[0], np.cumsum(lengths_N)])
        count = int(row_starts[-1])
        bits = bits_per_id(meaning.vocab_size)
        sizes = (packed_bytes(count, bits), count, count * self.bits // 8)
        if len(data) != num_rows + sum(sizes):
            raise CorruptData(f"{num_rows} recorded rows of draws have {len(data)} bytes")
        packed, counts, codes = np.split(data[num_rows:], np.cumsum(sizes)[:-1])
        ids_R = unpack_bits(packed[None], count, bits)[0]
        counts_R = counts.astype(np.int64) + 1
        if int(ids_R.max()) >= meaning.vocab_size:
            raise CorruptData("a recorded row has an id beyond the vocabulary")
        if not (np.add.reduceat(counts_R, row_starts[:-1]) == self.num_draws).all():
            raise CorruptData(f"a recorded row does not have {self.num_draws} draws")
        log_probs_R = log_probs_of(_values_of(codes, f"<u{self.bits // 8}"), self.bits)
        return SampledTargets(
            ids_R=torch.from_numpy(ids_R),
            counts_R=torch.from_numpy(counts_R),
            log_probs_R=torch.from_numpy(log_probs_R.astype(np.float32)),
            row_starts=row_starts,
            num_draws=self.num_draws,
            temperature=meaning.temperature,
            vocab_size=meaning.vocab_size,
        )


def _sharing(
    log_probs_NK: npt.NDArray[np.float64], log_rest_N: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns the log-probabilities scaled so that they sum to what the rest leaves."""
    largest_N1 = log_probs_NK.max(-1, keepdims=True)
    if not np.isfinite(largest_N1).all():
        raise CorruptData("a recorded row has no likely id")
    kept_N1 = largest_N1 + np.log(np.exp(log_probs_NK - largest_N1).sum(-1, keepdims=True))
    with np.errstate(divide="ignore"):
        left_N1 = np.log(-np.expm1(log_rest_N))[:, None]
    # A rest that rounds to all mass says nothing about what is left.
    scaled_NK: npt.NDArray[np.float64] = log_probs_NK + np.where(
        np.isfinite(left_N1), left_N1 - kept_N1, 0.0
    )
    return scaled_NK


def _hidden_of(targets: TeacherTargets) -> Tensor:
    if not isinstance(targets, HiddenTargets):
        raise TeacherError(f"the teacher sent {type(targets).__name__}; expected hidden states")
    return targets.hidden_ND.cpu()


def _hidden_targets(hidden_ND: Tensor, meaning: RowMeaning) -> HiddenTargets:
    if meaning.head is None:
        raise ValueError("recorded hidden states need the teacher's output head")
    if not math.isfinite(float(hidden_ND.abs().max())):
        raise CorruptData("a recorded hidden state is not finite")
    return HiddenTargets(hidden_ND, meaning.head)


def _bytes_of(values: npt.NDArray[Any]) -> Bytes:
    """Returns the little-endian bytes of values, along their last axis."""
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return values.view(np.uint8).reshape(*values.shape[:-1], -1)


def _values_of(data: Bytes, dtype: str) -> npt.NDArray[Any]:
    """Does the opposite of `_bytes_of`."""
    return np.ascontiguousarray(data).view(dtype)
