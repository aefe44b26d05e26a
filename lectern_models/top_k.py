"""The k largest logits in an order that does not depend on who looks for them.

Legend: C rows, V vocabulary, K top-k.
"""

import torch
from torch import Tensor


def ordered_top_k(logits_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest logits, falling, and their ids; of equal logits the lower ids.

    torch.topk picks any of equal logits, so the same answer could name another id elsewhere.
    """
    values_CK, ids_CK = torch.topk(logits_CV, k, dim=-1)
    ids_CK = ids_CK.sort(dim=-1).values
    values_CK, order_CK = logits_CV.gather(-1, ids_CK).sort(dim=-1, descending=True, stable=True)
    ids_CK = ids_CK.gather(-1, order_CK)
    last_C1 = values_CK[:, -1:]
    # Rows in which more ids carry the last value than were taken: there topk had a choice.
    chosen_C = (logits_CV == last_C1).sum(-1) > (values_CK == last_C1).sum(-1)
    if bool(chosen_C.any()):
        full_values, full_ids = logits_CV[chosen_C].sort(dim=-1, descending=True, stable=True)
        values_CK[chosen_C], ids_CK[chosen_C] = full_values[:, :k], full_ids[:, :k]
    return values_CK, ids_CK
