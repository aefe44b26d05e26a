"""Draws ids from the teacher's distribution, reproducibly from a seed and the tokens.

Legend: S tokens of a sequence, N asked positions, C rows of a chunk, V vocabulary, U draws of a
row, R records: the distinct ids of all rows, row after row.

With the draws' frequencies in place of the distribution the KD gradient is unbiased (Anshumann et
al. 2025, "Sparse Logit Sampling"); with only the k largest it is not.

Uniforms come from SHAKE-256, whose output is the same on every machine, and are turned into ids by
the inverse of the cumulative distribution, in float64. Machines with bit-equal logits draw the same
ids, unless a uniform lies within float64's rounding of a step.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest

# Separates these bytes from any other use of SHAKE-256 over a seed and tokens.
_PREFIX = b"lectern draws 1\n"


class Draws(NamedTuple):
    """The draws of some rows: one record per distinct id of a row, in ascending id order.

    `counts_R` of a row sum to the number of draws; `log_probs_R` are log softmax(logits / T).
    """

    ids_R: Tensor  # int64
    counts_R: Tensor  # int64, >= 1
    log_probs_R: Tensor  # float32, <= 0
    row_lengths_C: Tensor  # int64, records of each row, >= 1


def uniforms(
    seed: int,
    token_ids_S: npt.NDArray[np.uint32],
    asked_S: npt.NDArray[np.bool_],
    num_draws: int,
) -> npt.NDArray[np.float64]:
    """Returns float64 [N, num_draws] in [0, 1), a row for each asked position.

    A row depends only on the seed and the tokens up to its position, and its first draws are the
    same for any `num_draws`: SHAKE-256 over a prefix, the seed as 8 little-endian bytes and each
    token as 4; each draw is the upper 53 bits of 8 little-endian bytes of output.

    Args:
        seed: 0 <= seed < 2**64.
        token_ids_S: the sequence.
        asked_S: True where a row is requested.
        num_draws: >= 1.
    """
    state = hashlib.shake_256(_PREFIX + seed.to_bytes(8, "little"))
    tokens = np.ascontiguousarray(token_ids_S, "<u4").tobytes()
    rows, hashed = [], 0
    for position in np.flatnonzero(asked_S).tolist():
        end = 4 * (position + 1)
        state.update(tokens[hashed:end])
        hashed = end
        rows.append(state.digest(8 * num_draws))  # leaves the state as it is
    words = np.frombuffer(b"".join(rows), "<u8").reshape(len(rows), num_draws)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits_CV: Tensor, uniforms_CU: Tensor, temperature: float) -> Draws:
    """Returns independent draws from softmax(logits / temperature), one for each uniform.

    An id of probability 0 is never drawn. A row depends only on its own logits and uniforms.
    Leaves its inputs unchanged; needs memory for one more [C, V] in float64.

    Args:
        logits_CV: finite (an id ruled out by -inf has probability 0); V is the asked vocabulary.
        uniforms_CU: float64 in [0, 1), on any device.
        temperature: > 0.

    Raises:
        InvalidRequest: logits / temperature leave float64's range.
    """
    scaled_CV = logits_CV.to(torch.float64, copy=True).div_(temperature)
    largest_C1 = scaled_CV.amax(-1, keepdim=True)
    if not bool(largest_C1.isfinite().all()):
        raise InvalidRequest(
            f"temperature {temperature:g} takes logits / temperature out of float64's range",
            field="temperature",
        )
    cumulative_CV = scaled_CV.sub_(largest_C1).exp_().cumsum_(-1)
    total_C1 = cumulative_CV[:, -1:]  # >= 1, the weight of the largest
    targets_CU = uniforms_CU.to(logits_CV.device) * total_C1  # < total: u <= 1 - 2**-53
    # The first id whose cumulative weight exceeds the target; it rose there, so it has weight.
    ids_CU = torch.searchsorted(cumulative_CV, targets_CU, right=True).sort(-1).values

    first_CU = torch.ones_like(ids_CU, dtype=torch.bool)
    first_CU[:, 1:] = ids_CU[:, 1:] != ids_CU[:, :-1]
    row_lengths_C = first_CU.sum(-1)
    starts_R = first_CU.flatten().nonzero().squeeze(1)
    counts_R = starts_R.diff(append=starts_R.new_full((1,), ids_CU.numel()))
    ids_R, rows_R = ids_CU.flatten()[starts_R], starts_R // ids_CU.shape[1]
    scaled_R = logits_CV[rows_R, ids_R].to(torch.float64).div_(temperature)
    log_probs_R = scaled_R.sub_(largest_C1[rows_R, 0]).sub_(total_C1.log()[rows_R, 0])
    return Draws(ids_R, counts_R, log_probs_R.to(torch.float32), row_lengths_C)
