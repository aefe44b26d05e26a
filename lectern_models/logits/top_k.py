"""The k largest logits in a reproducible order, and the mass of the rest.

Legend: C rows, V vocabulary, K top-k.
"""

import math

import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest
from lectern_models.logits.masks import rules_out


def ordered_top_k(logits_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest logits, descending, and their ids; of equal logits the lower ids.

    torch.topk picks any of equal logits, so equal logits could give other ids elsewhere.
    """
    values_CK, ids_CK = torch.topk(logits_CV, k, dim=-1)
    ids_CK = ids_CK.sort(dim=-1).values
    values_CK, order_CK = logits_CV.gather(-1, ids_CK).sort(dim=-1, descending=True, stable=True)
    ids_CK = ids_CK.gather(-1, order_CK)
    last_C1 = values_CK[:, -1:]
    # Rows in which more ids have the last value than were taken: topk had a choice there.
    chosen_C = (logits_CV == last_C1).sum(-1) > (values_CK == last_C1).sum(-1)
    if bool(chosen_C.any()):
        full_values, full_ids = logits_CV[chosen_C].sort(dim=-1, descending=True, stable=True)
        values_CK[chosen_C], ids_CK[chosen_C] = full_values[:, :k], full_ids[:, :k]
    return values_CK, ids_CK


def log_normalizers(logits_CV: Tensor, ids_CK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns logsumexp(logits / temperature) [C] over the ids not in `ids_CK`, then over all.

    The first is summed separately, so it is exact even if the rest has almost no mass; -inf if
    K = V, or if all other ids are ruled out by -inf. Leaves its inputs unchanged; needs memory for
    one more [C, V].

    Args:
        logits_CV: every row is a distribution (masks.py).
        ids_CK: distinct ids in each row.
        temperature: > 0.

    Raises:
        InvalidRequest: logits / temperature leave the range of the logits' dtype.
    """
    scaled_CV = logits_CV / temperature
    normalizer_C = scaled_CV.logsumexp(-1)
    rest_C = scaled_CV.scatter_(-1, ids_CK, -math.inf).logsumexp(-1)
    lost_C = ~rest_C.isfinite()
    if bool(lost_C.any()):  # a rest that has mass must not lose it
        has_rest_CV = (~rules_out(logits_CV[lost_C])).scatter_(-1, ids_CK[lost_C], False)
        lost_C = has_rest_CV.any(-1)
    if not bool(normalizer_C.isfinite().all()) or bool(lost_C.any()):
        raise InvalidRequest(
            f"temperature {temperature:g} takes logits / temperature out of float32's range",
            field="temperature",
        )
    return rest_C, normalizer_C
