"""Teachers that run in the trainer's own process.

Legend: S tokens of a sequence, N asked positions, V the student's vocabulary, D the teacher's
hidden size, K top-k, R records of draws.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lectern_common.errors import (
    InvalidRequest,
    Misconfigured,
    RepresentationNotOffered,
    TeacherError,
)
from lectern_common.wire.formats import MAX_DRAWS, Representation
from lectern_models.body_and_head import split_or_why
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
        if representation.kind == "dense":
            return DenseTargets(logits_NV)
        if representation.kind == "sampled":
            rows = [int(np.count_nonzero(asked_S)) for asked_S in positions]
            draws = [
                part
                for sequence, mask, logits in zip(
                    sequences, positions, torch.split(logits_NV, rows), strict=True
                )
                for part in _draws(sequence, mask, logits, representation, temperature)
            ]
            return _sampled_targets(draws, representation, temperature, self._vocab_size)
        return _top_k_targets(logits_NV, _checked_k(representation, self._vocab_size), temperature)


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
        width = int(model.config.get_text_config().vocab_size)
        if parts is not None:
            width = parts.head().vocab_size
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
        if representation.kind == "hidden":
            if self._head is None:
                raise RepresentationNotOffered(str(self._not_split))
            return HiddenTargets(torch.cat([self._hidden(*one) for one in asked]), self._head)
        if representation.kind == "dense":
            return DenseTargets(torch.cat([self._logits(*one) for one in asked]))
        if representation.kind == "sampled":
            draws = [
                part
                for ids_S, asked_S in asked
                for part in _draws(
                    ids_S,
                    asked_S.numpy(),
                    self._logits(ids_S, asked_S),
                    representation,
                    temperature,
                )
            ]
            return _sampled_targets(draws, representation, temperature, self._vocab_size)
        k = _checked_k(representation, self._vocab_size)
        rows = [_top_k_targets(self._logits(*one), k, temperature) for one in asked]
        return TopKTargets(
            torch.cat([part.logits_NK for part in rows]),
            torch.cat([part.ids_NK for part in rows]),
            torch.cat([part.log_rest_t_N for part in rows]),
            torch.cat([part.log_normalizer_t_N for part in rows]),
            temperature,
            self._vocab_size,
        )

    def _logits(self, ids_S: npt.NDArray[np.uint32], asked_S: Tensor) -> Tensor:
        if self._head is not None:
            return self._head.logits(self._hidden(ids_S, asked_S))
        own_SV = self._model(input_ids=self._ids(ids_S), use_cache=False).logits[0]
        return _finite(own_SV[asked_S.to(own_SV.device), : self._vocab_size].float())

    def _hidden(self, ids_S: npt.NDArray[np.uint32], asked_S: Tensor) -> Tensor:
        if self._parts is None:
            raise ValueError("the model cannot be split into body and head")
        hidden_SD = self._parts.hidden_states(self._ids(ids_S))[0]
        return _finite(hidden_SD[asked_S.to(hidden_SD.device)])

    def _ids(self, ids_S: npt.NDArray[np.uint32]) -> Tensor:
        return torch.from_numpy(ids_S.astype(np.int64))[None].to(self._model.device)


def _top_k_targets(logits_NV: Tensor, k: int, temperature: float) -> TopKTargets:
    values_NK, ids_NK = ordered_top_k(logits_NV, k)
    rest_N, normalizer_N = log_normalizers(logits_NV, ids_NK, temperature)
    return TopKTargets(
        logits_NK=values_NK,
        ids_NK=ids_NK,
        log_rest_t_N=rest_N,
        log_normalizer_t_N=normalizer_N,
        temperature=temperature,
        vocab_size=logits_NV.shape[1],
    )


def _draws(
    ids_S: npt.NDArray[np.uint32],
    asked_S: npt.NDArray[np.bool_],
    logits_NV: Tensor,
    representation: Representation,
    temperature: float,
) -> list[Draws]:
    """Returns the draws of one sequence's rows, in chunks of rows."""
    num_draws = representation.num_draws
    if num_draws is None or not 1 <= num_draws <= MAX_DRAWS:
        raise InvalidRequest(f"num_draws is {num_draws}; it must be 1 to {MAX_DRAWS}", "num_draws")
    values_NU = torch.from_numpy(uniforms(representation.seed or 0, ids_S, asked_S, num_draws))
    chunks = [slice(first, first + _DRAW_ROWS) for first in range(0, len(logits_NV), _DRAW_ROWS)]
    return [draw(logits_NV[rows], values_NU[rows], temperature) for rows in chunks]


def _sampled_targets(
    parts: Sequence[Draws], representation: Representation, temperature: float, vocab_size: int
) -> SampledTargets:
    lengths_N = torch.cat([part.row_lengths_C for part in parts]).cpu().numpy()
    return SampledTargets(
        ids_R=torch.cat([part.ids_R for part in parts]),
        counts_R=torch.cat([part.counts_R for part in parts]),
        log_probs_R=torch.cat([part.log_probs_R for part in parts]),
        row_starts=np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64),
        num_draws=representation.num_draws or 0,
        temperature=temperature,
        vocab_size=vocab_size,
    )


def _checked_k(representation: Representation, vocab_size: int) -> int:
    if representation.kind != "top_k":
        raise RepresentationNotOffered(f"this teacher does not offer {representation.kind}")
    k = representation.top_k
    if k is None or not 1 <= k <= vocab_size:
        raise InvalidRequest(f"top_k is {k}; it must be 1 to {vocab_size}", "top_k")
    return k


def _finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise TeacherError("the teacher's output is not finite; it cannot be used as a target")
    return values
