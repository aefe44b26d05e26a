"""Checks before the first step, with one small batch, that the teacher's answers are consistent.

A teacher with wrong answers would spoil the whole run. Every reply is checked to be whole, finite,
in order and within bounds (reply.py, sampled_reply.py). The probe checks the numbers at a few
positions of the run's own first rows:

    top_k       the log-normaliser equals that of the logits and the rest
    order       a second request with the rows in another order gives the same answer: the same
                bytes if the teacher promises that
    two kinds   of the same rows give the same distribution, if the teacher offers a second one

Legend: N probed positions, V the student's vocabulary, K top-k, R records of draws.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from lectern_common.errors import Incompatible, TeacherError
from lectern_common.wire.formats import Representation, offered_by
from lectern_models.logits.masks import LOWEST_LOGIT, rules_out
from protos import teacher_pb2
from student_trainer.batch import Batch
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TargetsProvider,
    TeacherTargets,
    TopKTargets,
)

PROBE_SEQUENCES = 2
PROBE_POSITIONS = 4  # of each sequence
PROBE_TOP_K = 64

# How far apart float32 log-probabilities of the same hidden states may be, projected here and by
# the teacher: in nats, or relative if they are larger than 1.
_SAME_STATES = 1e-3
# The same for rows batched with others, which round differently in mode `throughput`.
_OTHER_COMPANY = {"float32": 1e-2, "float16": 0.1, "bfloat16": 0.5}

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answering:
    """What a teacher promises about its answers, as far as the probe checks it.

    Attributes:
        offered: the representations that it offers.
        max_top_k: its largest top_k; at most the student's vocabulary.
        dtype: the dtype it computes in.
        same_bytes: whether its bytes do not depend on what else it computes: one server, in mode
            `independent`.
    """

    offered: Collection[str]
    max_top_k: int
    dtype: str
    same_bytes: bool

    @classmethod
    def of_model(
        cls, model: teacher_pb2.Model, vocab_size: int, *, one_server: bool
    ) -> "Answering":
        """Returns what `model` promises for the student's `vocab_size`."""
        return cls(
            offered=offered_by(model),
            max_top_k=min(model.limits.max_top_k, vocab_size),
            dtype=model.dtype,
            same_bytes=model.mode == "independent" and one_server,
        )


@dataclass(frozen=True)
class ProbeRows:
    """Rows of a run, and the few positions of each that are probed."""

    sequences: list[npt.NDArray[np.uint32]]
    positions: list[npt.NDArray[np.bool_]]

    @classmethod
    def of_batch(cls, batch: Batch) -> "ProbeRows":
        """Returns the first rows with valid positions, and a few of those positions.

        The rows are whole, or their documents if those are kept apart, so that the teacher's
        forward of them also serves the first step; the first and the last valid position are
        included.
        """
        sequences: list[npt.NDArray[np.uint32]] = []
        positions: list[npt.NDArray[np.bool_]] = []
        for ids_S, valid_S in islice(batch.sequences(), PROBE_SEQUENCES):
            valid = np.flatnonzero(valid_S)
            places = np.linspace(0, len(valid) - 1, PROBE_POSITIONS).astype(np.int64)
            asked_S = np.zeros(len(ids_S), np.bool_)
            asked_S[valid[places]] = True
            sequences.append(ids_S)
            positions.append(asked_S)
        return cls(sequences, positions)

    def turned(self) -> tuple["ProbeRows", list[int]]:
        """Returns the rows in reverse order, and the new index of each of the N positions."""
        ends = np.cumsum([int(asked_S.sum()) for asked_S in self.positions])
        blocks = np.split(np.arange(ends[-1]), ends[:-1])
        order = np.concatenate(blocks[::-1])
        return ProbeRows(self.sequences[::-1], self.positions[::-1]), np.argsort(order).tolist()

    def place(self, index: int) -> str:
        """Returns position `index` of the N in words."""
        found = [
            (row, int(position))
            for row, asked_S in enumerate(self.positions)
            for position in np.flatnonzero(asked_S)
        ]
        return "row {}, position {}".format(*found[index])


def probe_teacher(
    teacher: TargetsProvider,
    rows: ProbeRows,
    representation: Representation,
    temperature: float,
    answering: Answering,
    *,
    may_mask: bool = True,
) -> str:
    """Returns in words what was checked. Raises unless the answers are consistent.

    Args:
        teacher: asked twice, and a third time if it offers another representation to compare with.
        rows: what to ask about; at least one position.
        representation: the run's.
        temperature: the run's.
        answering: what the teacher promises.
        may_mask: whether the objective is finite if the teacher gives ids a logit of -inf.

    Raises:
        Incompatible: it does, but may not.
        TeacherError: an answer is inconsistent; the message names the position, the expected and
            the actual value.
        LecternError: as TargetsProvider.score says.
    """
    kind = representation.kind
    first = teacher.score(rows.sequences, rows.positions, representation, temperature)
    if isinstance(first, TopKTargets):
        _require_normalised(first, rows)
    if not may_mask:
        _require_no_masks(first, rows)
    turned, places = rows.turned()
    again = teacher.score(turned.sequences, turned.positions, representation, temperature)
    moved = [again.rows(place, place + 1) for place in places]
    if answering.same_bytes:
        _require_same_bytes(first, moved, rows)
    else:
        _require_agreeing(first, moved, "its second reply", temperature, answering, rows)

    kinds = [name for name in ("top_k", "dense") if name in answering.offered and name != kind]
    if not kinds:
        return f"{kind} at {len(first)} positions is consistent; there is no other to compare with"
    top_k = min(PROBE_TOP_K, answering.max_top_k) if kinds[0] == "top_k" else None
    wanted = Representation(kinds[0], top_k)
    second = teacher.score(rows.sequences, rows.positions, wanted, temperature)
    others = [second.rows(index, index + 1) for index in range(len(second))]
    _require_agreeing(first, others, kinds[0], temperature, answering, rows)
    return f"{kind} at {len(first)} positions is consistent and agrees with {kinds[0]}"


def _require_normalised(targets: TopKTargets, rows: ProbeRows) -> None:
    kept_N = torch.logsumexp(targets.logits_NK.double() / targets.temperature, 1)
    sums_N = torch.logaddexp(kept_N, targets.log_rest_t_N.double()).tolist()
    for index, (expected, seen) in enumerate(
        zip(sums_N, targets.log_normalizer_t_N.tolist(), strict=True)
    ):
        if not abs(seen - expected) <= _SAME_STATES * max(1.0, abs(expected)):
            raise _broken(
                rows.place(index),
                f"a log-normaliser of {expected:.6g}, computed from its logits and its rest",
                f"{seen:.6g}",
            )


def _require_no_masks(targets: TeacherTargets, rows: ProbeRows) -> None:
    """Raises Incompatible if an id, or all of top_k's rest, has no probability at a position."""
    for index in range(len(targets)):
        one = targets.rows(index, index + 1)
        ids, log_probs = _known(one, 1.0)
        masked = ids[log_probs <= LOWEST_LOGIT]
        what = f"id {masked[0]}" if len(masked) else None
        if isinstance(one, TopKTargets) and len(ids) < one.vocab_size:
            rest_is_out = bool(rules_out(one.log_rest_t_N).any())
            what = what or (f"every id beyond its top {len(ids)}" if rest_is_out else None)
        if what is not None:
            raise Incompatible(
                f"objective.divergence reverse_kl is infinite: the teacher rules out {what} at "
                f"{rows.place(index)} of the first step (a logit of -inf); set forward_kl or jsd"
            )


def _require_same_bytes(
    first: TeacherTargets, again: Sequence[TeacherTargets], rows: ProbeRows
) -> None:
    for index, two in enumerate(again):
        if not _same_bytes(first.rows(index, index + 1), two):
            raise _broken(
                rows.place(index),
                "the same bytes for rows in another order (mode independent)",
                "different bytes",
            )


def _require_agreeing(
    first: TeacherTargets,
    others: Sequence[TeacherTargets],
    others_name: str,
    temperature: float,
    answering: Answering,
    rows: ProbeRows,
) -> None:
    """Raises TeacherError if two answers at one position are different distributions."""
    tolerance = _SAME_STATES
    if not answering.same_bytes:
        tolerance = _OTHER_COMPANY.get(answering.dtype, _OTHER_COMPANY["float32"])
    for index, other in enumerate(others):
        own_ids, own_log_probs = _known(first.rows(index, index + 1), temperature)
        other_ids, other_log_probs = _known(other, temperature)
        ids, own, theirs = np.intersect1d(own_ids, other_ids, return_indices=True)
        seen, expected = own_log_probs[own], other_log_probs[theirs]
        beyond = np.flatnonzero(~_close(seen, expected, tolerance))
        if len(beyond):
            worst = beyond[np.argmax(expected[beyond])]  # the likeliest, to check by hand
            raise _broken(
                f"{rows.place(index)}, token {ids[worst]}",
                f"a log-probability of {expected[worst]:.5g} (T {temperature:g}) in {others_name}",
                f"{seen[worst]:.5g}",
            )


def _close(seen: _Floats, expected: _Floats, tolerance: float) -> npt.NDArray[np.bool_]:
    """Returns which log-probabilities agree; two of -inf, an id that the teacher masks, do."""
    masked = np.isneginf(expected)
    allowed = tolerance * np.maximum(1.0, np.abs(np.where(masked, 0.0, expected)))
    # Only -inf equals -inf: anything else is infinitely far away.
    difference = np.abs(np.where(masked, 0.0, seen) - np.where(masked, 0.0, expected))
    agree: npt.NDArray[np.bool_] = np.where(masked, np.isneginf(seen), difference <= allowed)
    return agree


def _known(targets: TeacherTargets, temperature: float) -> tuple[npt.NDArray[np.int64], _Floats]:
    """Returns the ids that an answer at one position covers, and their log-probabilities."""
    if isinstance(targets, TopKTargets):
        log_probs = targets.logits_NK.double() / temperature - targets.log_normalizer_t_N.double()
        return targets.ids_NK[0].cpu().numpy(), log_probs[0].cpu().numpy()
    if isinstance(targets, SampledTargets):
        return targets.ids_R.cpu().numpy(), targets.log_probs_R.double().cpu().numpy()
    if isinstance(targets, HiddenTargets):
        device = targets.head.weight_VD.device
        logits_V = targets.head.logits(targets.hidden_ND.to(device))[0]
    else:
        logits_V = targets.logits_NV[0]
    log_probs_V = torch.log_softmax(logits_V.double() / temperature, -1)
    return np.arange(len(log_probs_V)), log_probs_V.cpu().numpy()


def _same_bytes(one: TeacherTargets, two: TeacherTargets) -> bool:
    if isinstance(one, DenseTargets) and isinstance(two, DenseTargets):
        return torch.equal(one.logits_NV, two.logits_NV)
    if isinstance(one, HiddenTargets) and isinstance(two, HiddenTargets):
        return torch.equal(one.hidden_ND, two.hidden_ND)
    names: tuple[str, ...] = ("ids_R", "counts_R", "log_probs_R")
    if isinstance(one, TopKTargets):
        names = ("logits_NK", "ids_NK", "log_rest_t_N", "log_normalizer_t_N")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def _broken(where: str, expected: str, seen: str) -> TeacherError:
    return TeacherError(
        f"the teacher's answers are inconsistent at {where} of the first step: expected "
        f"{expected}, got {seen}. Set another teacher.representation, or use another teacher"
    )
