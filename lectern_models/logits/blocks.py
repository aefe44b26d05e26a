"""The logits of a sequence in blocks of one fixed shape, so that neighbours never change a row.

Legend: S tokens of a sequence, N asked positions, C rows of a block, V vocabulary, D hidden size,
K top-k, U draws of a row, A ids of each row.

Which kernel computes a row of a product, and how it rounds, depends on the number of rows and on
the row's place among them: with MKL on AVX2, rows of a product of 31 differ by their place, and 1
to 3 rows differ from 4. Sums over a row may be shared among threads if the row is alone. So
position p of a sequence always stands in row p % C of a block of C rows, and whatever is computed
is computed for the whole block: on any processor, an answer's bytes depend only on the sequence,
whichever positions are asked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from lectern_common.errors import TeacherError
from lectern_models.logits.masks import first_row_without_distribution
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.sampled import Draws, draw
from lectern_models.logits.top_k import log_normalizers, ordered_top_k

# Every block reads the whole head. CUDA needs many rows to fill the device.
_BLOCK_ROWS = {"cpu": 32, "cuda": 256}


def block_rows(device_type: str) -> int:
    """Returns C for devices of this type."""
    return _BLOCK_ROWS.get(device_type, _BLOCK_ROWS["cuda"])


def block_logits(head: OutputHead, hidden_SD: Tensor, start: int) -> Tensor:
    """Returns float32 logits [C, V] of the positions from `start`; those beyond S are padding.

    Args:
        head: on the device of the hidden states.
        hidden_SD: hidden states of all positions, after the final norm.
        start: a multiple of C.
    """
    rows = block_rows(hidden_SD.device.type)
    block_CD = hidden_SD[start : start + rows]
    return head.logits(functional.pad(block_CD, (0, 0, 0, rows - len(block_CD))))


@dataclass(frozen=True)
class Block:
    """Logits of consecutive positions, some of them asked.

    Attributes:
        rows: the rows of the answer that it holds.
        asked: their indices among the block's rows, rising.
        logits_CV: of the whole block; 0 in rows that are not asked.
    """

    rows: slice
    asked: npt.NDArray[np.int64]
    logits_CV: Tensor

    def taken(self, values_CX: Tensor) -> Tensor:
        """Returns the asked rows of values that were computed for the whole block."""
        if len(self.asked) == len(values_CX):
            return values_CX
        return values_CX[torch.from_numpy(self.asked).to(values_CX.device)]


@dataclass(frozen=True)
class AskedLogits:
    """The asked logits of a sequence, computed a block at a time.

    Attributes:
        asked_S: True at the asked positions.
        device_type: of the logits.
        of_block: returns the float32 logits [C, V] of the positions from its argument on; rows
            beyond the sequence are padding, and may be missing.
    """

    asked_S: npt.NDArray[np.bool_]
    device_type: str
    of_block: Callable[[int], Tensor]

    @classmethod
    def of(cls, asked_S: npt.NDArray[np.bool_], logits_SV: Tensor) -> "AskedLogits":
        """Returns those of a sequence whose logits exist at all positions, in any dtype."""
        rows = block_rows(logits_SV.device.type)
        return cls(
            asked_S, logits_SV.device.type, lambda start: logits_SV[start : start + rows].float()
        )

    @classmethod
    def of_hidden(
        cls, asked_S: npt.NDArray[np.bool_], hidden_SD: Tensor, head: OutputHead
    ) -> "AskedLogits":
        """Returns those that a head on the same device gives for final hidden states."""
        return cls(asked_S, hidden_SD.device.type, partial(block_logits, head, hidden_SD))

    def blocks(self) -> Iterator[Block]:
        """Yields each block that has an asked position.

        Raises:
            TeacherError: an asked logit is not finite; -inf, a masked id, is allowed beside others.
        """
        size, done = block_rows(self.device_type), 0
        for start in range(0, len(self.asked_S), size):
            asked = np.flatnonzero(self.asked_S[start : start + size])
            if not len(asked):
                continue
            logits_CV = _only(asked, self.of_block(start))
            bad_row = first_row_without_distribution(logits_CV)
            if bad_row is not None:
                place = done + int(np.searchsorted(asked, bad_row))
                raise TeacherError(
                    f"the model's logits are not finite (asked position {place} of a sequence), "
                    "or all -inf; they cannot be used as a target"
                )
            yield Block(slice(done, done + len(asked)), asked, logits_CV)
            done += len(asked)


def top_k_of(block: Block, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns logits and ids [N, K], then log rest and log normalizer [N] of the asked rows.

    See ordered_top_k and log_normalizers, and what they raise.
    """
    values_CK, ids_CK = ordered_top_k(block.logits_CV, k)
    rest_C, normalizer_C = log_normalizers(block.logits_CV, ids_CK, temperature)
    taken = block.taken
    return taken(values_CK), taken(ids_CK), taken(rest_C), taken(normalizer_C)


def values_and_ranks(block: Block, ids_NA: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Returns the logits [N, A] of the given ids in each asked row, and the first id's place [N].

    Places count from 1, in the order of ordered_top_k. Nothing is computed, only compared, so no
    neighbour changes a value.
    """
    logits_NV = block.taken(block.logits_CV)
    ids = torch.from_numpy(ids_NA).to(logits_NV.device)
    values_NA = logits_NV.gather(-1, ids)
    own_N1, id_N1 = values_NA[:, :1], ids[:, :1]
    # int32 sums take half the time of int64 ones, and ids of equal logits are rare.
    before_N = (logits_NV > own_N1).sum(-1, dtype=torch.int32)
    has_equals_N = (logits_NV == own_N1).sum(-1, dtype=torch.int32) > 1
    if bool(has_equals_N.any()):
        id_V = torch.arange(logits_NV.shape[-1], device=logits_NV.device)
        lower_NV = (logits_NV[has_equals_N] == own_N1[has_equals_N]) & (id_V < id_N1[has_equals_N])
        before_N[has_equals_N] += lower_NV.sum(-1, dtype=torch.int32)
    return values_NA, before_N + 1


def draws_of(block: Block, uniforms_NU: npt.NDArray[np.float64], temperature: float) -> Draws:
    """Returns the draws of the asked rows.

    Args:
        block: its asked rows are `block.rows` of the uniforms.
        uniforms_NU: see sampled.uniforms.
        temperature: see sampled.draw, and what it raises.
    """
    uniforms_CU = np.zeros((len(block.logits_CV), uniforms_NU.shape[1]))
    uniforms_CU[block.asked] = uniforms_NU[block.rows]
    draws = draw(block.logits_CV, torch.from_numpy(uniforms_CU), temperature)
    lengths_C = draws.row_lengths_C
    is_asked_C = torch.zeros_like(lengths_C, dtype=torch.bool)
    is_asked_C[torch.from_numpy(block.asked).to(lengths_C.device)] = True
    kept_R = is_asked_C.repeat_interleave(lengths_C)
    return Draws(
        draws.ids_R[kept_R],
        draws.counts_R[kept_R],
        draws.log_probs_R[kept_R],
        lengths_C[is_asked_C],
    )


def first_bad_row(values_NX: Tensor) -> int | None:
    """Returns the first row that holds a value that is not finite, or None."""
    finite_N = values_NX.isfinite().all(-1)
    return None if bool(finite_N.all()) else int((~finite_N).nonzero()[0])


def _only(asked: npt.NDArray[np.int64], logits_CV: Tensor) -> Tensor:
    """Returns the logits with rows that are not asked set to 0, whatever stands there."""
    if len(asked) == len(logits_CV):
        return logits_CV
    is_other_C = torch.ones(len(logits_CV), dtype=torch.bool)
    is_other_C[torch.from_numpy(asked)] = False
    return logits_CV.masked_fill(is_other_C.to(logits_CV.device)[:, None], 0.0)
