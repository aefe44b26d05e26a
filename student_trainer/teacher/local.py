"""Teachers that run in the trainer's own process.

Legend: S tokens of a sequence, N asked positions, V the student's vocabulary, D the teacher's
hidden size, K top-k, R records of draws.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lectern_common.checks.config_fields import VOCAB_SIZE, number
from lectern_common.errors import (
    InvalidRequest,
    Misconfigured,
    RepresentationNotOffered,
    TeacherError,
)
from lectern_common.wire.formats import MAX_DRAWS, Representation
from lectern_models.body_and_head import split_or_why
from lectern_models.loading import max_positions
from lectern_models.masks import first_row_without_distribution
from lectern_models.sampled import Draws, draw, uniforms
from lectern_models.top_k import log_normalizers, ordered_top_k
from student_trainer.data.lists import every_position_logits, last_position_logits
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TeacherTargets,
    TopKTargets,
)

# The logit of the fixture's preferred token; all others have 0.
_FIXTURE_PEAK = 10.0
# Rows drawn at a time, in float64.
_DRAW_ROWS = 64


class FixtureTeacher:
    """A teacher without a model: its most likely next token is the last input token.

    A token outside the vocabulary makes it prefer id 0. For tests and plumbing.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def vocab_size(self) -> int:
        """See TeacherLogitsProvider."""
        return self._vocab_size

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See TeacherLogitsProvider."""
        return last_position_logits(self, input_ids)

    def logits_per_position(
        self, input_ids: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        """See TeacherLogitsProvider."""
        return every_position_logits(self, input_ids)

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider; does not offer "hidden"."""
        if representation.kind == "hidden":
            raise RepresentationNotOffered("the fixture has no model, so it has no hidden states")
        asked = [ids_S[asked_S] for ids_S, asked_S in zip(sequences, positions, strict=True)]
        tokens_N = torch.from_numpy(np.concatenate(asked).astype(np.int64))
        peaks_N = torch.where(tokens_N < self._vocab_size, tokens_N, 0)
        logits_NV = torch.zeros(len(tokens_N), self._vocab_size)
        logits_NV.scatter_(1, peaks_N[:, None], _FIXTURE_PEAK)
        rows = [int(np.count_nonzero(asked_S)) for asked_S in positions]
        scored = map(_Scored, sequences, positions, torch.split(logits_NV, rows))
        return _OF_LOGITS[representation.kind](scored, representation, temperature)


class InProcessTeacher:
    """A transformers model that teaches in this process, with the server's arithmetic.

    Computes one sequence per forward, so that an answer depends only on its own sequence.

    Args:
        model: in any dtype, on any device; its parameters are frozen and it is put in eval mode.
        vocab_size: V, the student's; rows cover ids 0 .. V - 1. None means all of the model's.

    Raises:
        Misconfigured: the model's head cannot be split off and it computes in 16 bits, which spoils
            its logits.
        InvalidRequest: vocab_size exceeds the model's logit width.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int | None = None) -> None:
        self._model = model.requires_grad_(False)
        model.train(False)
        parts, self._not_split = split_or_why(model)
        if parts is None and model.dtype != torch.float32:
            raise Misconfigured(
                f"this teacher cannot teach in {model.dtype} ({self._not_split}); "
                "load it in float32"
            )
        self._parts = parts
        self._max_positions = max_positions(model)
        if parts is not None:
            width = parts.head().vocab_size
        else:
            width = number(model.config.to_dict(), VOCAB_SIZE) or 0
        self._vocab_size = width if vocab_size is None else vocab_size
        if not 1 <= self._vocab_size <= width:
            raise InvalidRequest(
                f"vocab_size is {vocab_size}, but the teacher has {width} logits", "vocab_size"
            )
        self._head = None if parts is None else parts.head().sliced(self._vocab_size).widened()

    def vocab_size(self) -> int:
        """See TeacherLogitsProvider."""
        return self._vocab_size

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """See TeacherLogitsProvider."""
        return last_position_logits(self, input_ids)

    def logits_per_position(
        self, input_ids: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        """See TeacherLogitsProvider."""
        return every_position_logits(self, input_ids)

    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider; the targets are on the model's device."""
        asked = [
            (ids_S, torch.from_numpy(asked_S))
            for ids_S, asked_S in zip(sequences, positions, strict=True)
            if asked_S.any()
        ]
        if not asked:
            raise InvalidRequest("no position is requested", "positions")
        longest = max(len(ids_S) for ids_S, _ in asked)
        if self._max_positions is not None and longest > self._max_positions:
            raise InvalidRequest(
                f"a sequence of {longest} tokens exceeds the {self._max_positions} positions of "
                "the teacher",
                "sequences",
            )
        if representation.kind == "hidden":
            if self._head is None:
                raise RepresentationNotOffered(str(self._not_split))
            return HiddenTargets(torch.cat([self._hidden(*one) for one in asked]), self._head)
        scored = (_Scored(ids, mask.numpy(), self._logits(ids, mask)) for ids, mask in asked)
        return _OF_LOGITS[representation.kind](scored, representation, temperature)

    def _logits(self, ids_S: npt.NDArray[np.uint32], asked_S: Tensor) -> Tensor:
        if self._head is not None:
            return _distributions(self._head.logits(self._hidden(ids_S, asked_S)))
        own_SV = self._model(input_ids=self._ids(ids_S), use_cache=False).logits[0]
        return _distributions(own_SV[asked_S.to(own_SV.device), : self._vocab_size].float())

    def _hidden(self, ids_S: npt.NDArray[np.uint32], asked_S: Tensor) -> Tensor:
        if self._parts is None:
            raise ValueError("the model cannot be split into body and head")
        hidden_SD = self._parts.hidden_states(self._ids(ids_S))[0]
        return _finite(hidden_SD[asked_S.to(hidden_SD.device)])

    def _ids(self, ids_S: npt.NDArray[np.uint32]) -> Tensor:
        return torch.from_numpy(ids_S.astype(np.int64))[None].to(self._model.device)


@dataclass(frozen=True)
class _Scored:
    """One sequence with the logits at its asked positions."""

    ids_S: npt.NDArray[np.uint32]
    asked_S: npt.NDArray[np.bool_]
    logits_NV: Tensor


def _dense_targets(
    scored: Iterable[_Scored], _representation: Representation, _temperature: float
) -> DenseTargets:
    return DenseTargets(torch.cat([one.logits_NV for one in scored]))


def _top_k_targets(
    scored: Iterable[_Scored], representation: Representation, temperature: float
) -> TopKTargets:
    k, parts, vocab_size = representation.top_k, [], 0
    for one in scored:  # only one sequence's logits exist at a time
        vocab_size = one.logits_NV.shape[1]
        if k is None or not 1 <= k <= vocab_size:
            raise InvalidRequest(f"top_k is {k}; it must be 1 to {vocab_size}", "top_k")
        values_NK, ids_NK = ordered_top_k(one.logits_NV, k)
        parts.append((values_NK, ids_NK, *log_normalizers(one.logits_NV, ids_NK, temperature)))
    logits_NK, ids_NK, rest_N, normalizer_N = map(torch.cat, zip(*parts, strict=True))
    return TopKTargets(logits_NK, ids_NK, rest_N, normalizer_N, temperature, vocab_size)


def _sampled_targets(
    scored: Iterable[_Scored], representation: Representation, temperature: float
) -> SampledTargets:
    num_draws, seed = representation.num_draws, representation.seed or 0
    if num_draws is None or not 1 <= num_draws <= MAX_DRAWS:
        raise InvalidRequest(f"num_draws is {num_draws}; it must be 1 to {MAX_DRAWS}", "num_draws")
    parts: list[Draws] = []
    vocab_size = 0
    for one in scored:
        vocab_size = one.logits_NV.shape[1]
        values_NU = torch.from_numpy(uniforms(seed, one.ids_S, one.asked_S, num_draws))
        for first in range(0, len(one.logits_NV), _DRAW_ROWS):
            rows = slice(first, first + _DRAW_ROWS)
            parts.append(draw(one.logits_NV[rows], values_NU[rows], temperature))
    lengths_N = torch.cat([part.row_lengths_C for part in parts]).cpu().numpy()
    return SampledTargets(
        ids_R=torch.cat([part.ids_R for part in parts]),
        counts_R=torch.cat([part.counts_R for part in parts]),
        log_probs_R=torch.cat([part.log_probs_R for part in parts]),
        row_starts=np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64),
        num_draws=num_draws,
        temperature=temperature,
        vocab_size=vocab_size,
    )


_OF_LOGITS: dict[str, Callable[[Iterable[_Scored], Representation, float], TeacherTargets]] = {
    "dense": _dense_targets,
    "top_k": _top_k_targets,
    "sampled": _sampled_targets,
}


def _finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise TeacherError("the teacher's output is not finite; it cannot be used as a target")
    return values


def _distributions(logits_NV: Tensor) -> Tensor:
    if first_row_without_distribution(logits_NV) is not None:
        raise TeacherError(
            "the teacher's logits are not finite, or all -inf; they cannot be used as a target"
        )
    return logits_NV
