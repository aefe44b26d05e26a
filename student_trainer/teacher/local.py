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
from lectern_models.logits.blocks import AskedLogits, draws_of, first_bad_row, top_k_of
from lectern_models.logits.sampled import Draws, uniforms
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
        scored = (
            _Scored(ids_S, asked_S, AskedLogits.of(asked_S, self._logits(ids_S)))
            for ids_S, asked_S in zip(sequences, positions, strict=True)
            if asked_S.any()
        )
        return _OF_LOGITS[representation.kind](
            scored, self._vocab_size, representation, temperature
        )

    def _logits(self, ids_S: npt.NDArray[np.uint32]) -> Tensor:
        tokens_S = torch.from_numpy(ids_S.astype(np.int64))
        peaks_S = torch.where(tokens_S < self._vocab_size, tokens_S, 0)
        logits_SV = torch.zeros(len(tokens_S), self._vocab_size)
        return logits_SV.scatter_(1, peaks_S[:, None], _FIXTURE_PEAK)


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
            (ids_S, asked_S)
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
        scored = (_Scored(*one, self._logits(*one)) for one in asked)
        return _OF_LOGITS[representation.kind](
            scored, self._vocab_size, representation, temperature
        )

    def _logits(self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]) -> AskedLogits:
        if self._head is not None:
            return AskedLogits.of_hidden(asked_S, self._hidden_states(ids_S), self._head)
        own_SV = self._model(input_ids=self._ids(ids_S), use_cache=False).logits[0]
        return AskedLogits.of(asked_S, own_SV[:, : self._vocab_size])

    def _hidden(self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]) -> Tensor:
        hidden_SD = self._hidden_states(ids_S)
        hidden_ND = hidden_SD[torch.from_numpy(asked_S).to(hidden_SD.device)]
        if first_bad_row(hidden_ND) is not None:
            raise TeacherError("the teacher's output is not finite; it cannot be used as a target")
        return hidden_ND

    def _hidden_states(self, ids_S: npt.NDArray[np.uint32]) -> Tensor:
        if self._parts is None:
            raise ValueError("the model cannot be split into body and head")
        return self._parts.hidden_states(self._ids(ids_S))[0]

    def _ids(self, ids_S: npt.NDArray[np.uint32]) -> Tensor:
        return torch.from_numpy(ids_S.astype(np.int64))[None].to(self._model.device)


@dataclass(frozen=True)
class _Scored:
    """One sequence with the logits at its asked positions."""

    ids_S: npt.NDArray[np.uint32]
    asked_S: npt.NDArray[np.bool_]
    logits: AskedLogits


def _dense_targets(
    scored: Iterable[_Scored], _vocab_size: int, _asked: Representation, _temperature: float
) -> DenseTargets:
    blocks = (block for one in scored for block in one.logits.blocks())
    return DenseTargets(torch.cat([block.taken(block.logits_CV) for block in blocks]))


def _top_k_targets(
    scored: Iterable[_Scored], vocab_size: int, asked: Representation, temperature: float
) -> TopKTargets:
    k = asked.top_k
    if k is None or not 1 <= k <= vocab_size:
        raise InvalidRequest(f"top_k is {k}; it must be 1 to {vocab_size}", "top_k")
    parts = [
        top_k_of(block, k, temperature)
        for one in scored  # only one block's logits exist at a time
        for block in one.logits.blocks()
    ]
    logits_NK, ids_NK, rest_N, normalizer_N = map(torch.cat, zip(*parts, strict=True))
    return TopKTargets(logits_NK, ids_NK, rest_N, normalizer_N, temperature, vocab_size)


def _sampled_targets(
    scored: Iterable[_Scored], vocab_size: int, asked: Representation, temperature: float
) -> SampledTargets:
    num_draws, seed = asked.num_draws, asked.seed or 0
    if num_draws is None or not 1 <= num_draws <= MAX_DRAWS:
        raise InvalidRequest(f"num_draws is {num_draws}; it must be 1 to {MAX_DRAWS}", "num_draws")
    parts: list[Draws] = []
    for one in scored:
        uniforms_NU = uniforms(seed, one.ids_S, one.asked_S, num_draws)
        parts += [draws_of(block, uniforms_NU, temperature) for block in one.logits.blocks()]
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


_OfLogits = Callable[[Iterable[_Scored], int, Representation, float], TeacherTargets]
_OF_LOGITS: dict[str, _OfLogits] = {
    "dense": _dense_targets,
    "top_k": _top_k_targets,
    "sampled": _sampled_targets,
}
