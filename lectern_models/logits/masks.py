"""Masked vocabularies: logits that mean probability 0, beside those that mean a broken model.

Legend: C rows, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

# Models mask ids with -inf, or with the lowest number of float32 or bfloat16, -3.4e38. Both mean
# probability 0, even in float64, so a logit down here rules its id out.
LOWEST_LOGIT = -1e31


def rules_out(logits: Tensor) -> Tensor:
    """Returns True for each logit that means probability 0."""
    return logits <= LOWEST_LOGIT


def with_masks(logits: Tensor) -> Tensor:
    """Returns the logits with -inf for every one that means probability 0."""
    return F.threshold(logits, LOWEST_LOGIT, float("-inf"))


def first_row_without_distribution(logits_CV: Tensor) -> int | None:
    """Returns the first row whose softmax is not a distribution, or None.

    Such a row has nan or inf, or only -inf. Some -inf are a mask.
    """
    usable_C = logits_CV.amax(-1).isfinite()  # nan if any value is
    return None if bool(usable_C.all()) else int((~usable_C).nonzero()[0])
