"""What recording costs in exactness: recorded answers beside the teacher's full distribution.

Measured on a few positions before all of them are recorded, in float64, at the part's temperature:

    kl               KL(p || r) in nats per token, p the teacher's distribution and r the recorded
                     one. For top_k over the k ids and the rest as one, as a run computes it; it
                     says nothing about draws, which are right only on average, so there it is null.
    gradient_error   |r - p| / |u - p|: how far the gradient of a student that has learnt nothing
                     (u, uniform) is from that of the full distribution, as a share of it. What
                     top_k leaves out counts as spread evenly.

Legend: N positions, V vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lectern_common.errors import RepresentationNotOffered
from lectern_common.wire.formats import Representation
from lectern_common.words import counted
from lectern_models.logits.output_head import OutputHead
from student_trainer.batch import Batch
from student_trainer.record.precompute import PlannedPart
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TargetsProvider,
    TeacherTargets,
    TopKTargets,
    joined,
)
from student_trainer.teacher.recorded_rows import RowMeaning, codec_of

SAMPLED_POSITIONS = 64


@dataclass(frozen=True)
class Quality:
    """See the module's docstring.

    Attributes:
        bytes_per_token: of the rows measured.
        kl: None for draws.
        gradient_error: a share.
        distinct_ids: per token; only with draws.
        positions: how many were measured.
    """

    part: str
    bytes_per_token: float
    kl: float | None
    gradient_error: float
    distinct_ids: float | None
    positions: int

    def in_words(self) -> str:
        """Returns it as one line for people."""
        words = [f"{self.part}: {self.bytes_per_token:,.1f} bytes a token"]
        if self.distinct_ids is not None:
            words.append(f"{self.distinct_ids:.1f} distinct ids a token")
        if self.kl is not None:
            words.append(f"KL to the teacher {self.kl:.2g} nats a token")
        words.append(f"gradient off by {self.gradient_error:.2%}")
        return ", ".join(words) + f" (on {counted(self.positions, 'token')})"


def quality_of(part: PlannedPart, teacher: TargetsProvider, meaning: RowMeaning) -> Quality:
    """Returns what the first positions of a part lose by being recorded.

    Args:
        part: to be recorded.
        teacher: asked about the same positions twice: as the part is, and for its distribution.
        meaning: of the part's rows.

    Raises:
        LecternError: as TargetsProvider.score says.
    """
    sequences, positions = _sample(part.batches())
    temperature = 1.0 if part.temperature is None else part.temperature
    codec = codec_of(part.format, meaning)
    answers = teacher.score(sequences, positions, part.representation, temperature)
    size, kept, first = 0, [], 0
    for asked_S in positions:
        last = first + int(np.count_nonzero(asked_S))
        data = codec.encode(answers.rows(first, last))
        size += len(data)
        kept.append(codec.decode(data, last - first))
        first = last
    recorded = joined(kept)
    full = _log_probs(_full(teacher, sequences, positions), temperature)
    return Quality(
        part.name,
        size / first,
        _kl(full, recorded, temperature),
        _gradient_error(full.exp(), _distribution(recorded, temperature, full.shape[-1])),
        len(recorded.ids_R) / first if isinstance(recorded, SampledTargets) else None,
        first,
    )


def _sample(batches: Iterable[Batch]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the first sequences with SAMPLED_POSITIONS asked positions between them."""
    sequences, positions, left = [], [], SAMPLED_POSITIONS
    for batch in batches:
        for ids_S, asked_S in batch.sequences():
            wanted = np.flatnonzero(asked_S)[:left]
            chosen_S = np.zeros(len(ids_S), bool)
            chosen_S[wanted] = True
            sequences.append(ids_S)
            positions.append(chosen_S)
            left -= len(wanted)
            if left <= 0:
                return sequences, positions
    return sequences, positions


def _full(
    teacher: TargetsProvider, sequences: list[np.ndarray], positions: list[np.ndarray]
) -> Tensor:
    """Returns the teacher's logits [N, V], from hidden states if it serves them."""
    try:
        return _logits(teacher.score(sequences, positions, Representation("hidden"), 1.0))
    except RepresentationNotOffered:
        return _logits(teacher.score(sequences, positions, Representation("dense"), 1.0))


def _logits(targets: TeacherTargets) -> Tensor:
    if isinstance(targets, HiddenTargets):
        head: OutputHead = targets.head
        return head.logits(targets.hidden_ND.to(head.weight_VD.device).float()).cpu()
    if isinstance(targets, DenseTargets):
        return targets.logits_NV.cpu()
    raise TypeError(f"{type(targets).__name__} holds no logits of all ids")


def _log_probs(logits_NV: Tensor, temperature: float) -> Tensor:
    return (logits_NV.double() / temperature).log_softmax(-1)


def _distribution(recorded: TeacherTargets, temperature: float, vocab_size: int) -> Tensor:
    """Returns what a record says of every id, float64 [N, V]."""
    if isinstance(recorded, (HiddenTargets, DenseTargets)):
        return _log_probs(_logits(recorded), temperature).exp()
    probs_NV = torch.zeros(len(recorded), vocab_size, dtype=torch.float64)
    if isinstance(recorded, TopKTargets):
        kept_NK, rest_N = _kept(recorded)
        others = max(1, vocab_size - kept_NK.shape[-1])
        probs_NV += (rest_N / others)[:, None]
        return probs_NV.scatter_(-1, recorded.ids_NK, kept_NK)
    share_R = recorded.counts_R.double() / recorded.num_draws
    probs_NV[recorded.row_of_record(), recorded.ids_R] = share_R
    return probs_NV


def _kept(targets: TopKTargets) -> tuple[Tensor, Tensor]:
    """Returns the probabilities of the kept ids [N, K], and of the rest [N]."""
    normalizer_N1 = targets.log_normalizer_t_N.double()[:, None]
    kept_NK = (targets.logits_NK.double() / targets.temperature - normalizer_N1).exp()
    return kept_NK, (targets.log_rest_t_N.double() - normalizer_N1[:, 0]).exp()


def _kl(full_NV: Tensor, recorded: TeacherTargets, temperature: float) -> float | None:
    """Returns the mean over positions of KL(p || r), where r is a distribution."""
    if isinstance(recorded, SampledTargets):
        return None
    p_NV = full_NV.exp()
    if isinstance(recorded, TopKTargets):
        r_NK, rest_N = _kept(recorded)
        p_NK = p_NV.gather(-1, recorded.ids_NK)
        p_rest_N = p_NV.scatter(-1, recorded.ids_NK, 0.0).sum(-1)
        kl_N = _terms(p_NK, r_NK).sum(-1) + _terms(p_rest_N, rest_N)
    else:
        kl_N = _terms(p_NV, _distribution(recorded, temperature, full_NV.shape[-1])).sum(-1)
    return float(kl_N.mean())


def _terms(p: Tensor, r: Tensor) -> Tensor:
    """Returns p log(p / r), 0 where p is 0."""
    return torch.where(p > 0, p * (p.log() - r.log()), 0.0)


def _gradient_error(p_NV: Tensor, r_NV: Tensor) -> float:
    uniform = 1 / p_NV.shape[-1]
    return float((r_NV - p_NV).norm() / (uniform - p_NV).norm())
