"""How tokens are chosen."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the likeliest with temperature 0, else drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512


def drawn_ids(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    """Returns the id that each uniform number chooses, int64 [B]."""
    p_BV = (logits_BV.double() / sampling.temperature).softmax(-1)
    sorted_BV, ids_BV = p_BV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_BV[:, sampling.top_k :] = 0
    if sampling.top_p < 1:
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(before_BV >= sampling.top_p, 0)
    p_BV = torch.zeros_like(p_BV).scatter_(-1, ids_BV, sorted_BV)
    up_to_BV = p_BV.cumsum(-1)
    wanted_B1 = uniforms_B[:, None].to(p_BV) * up_to_BV[:, -1:]
    ids_B = torch.searchsorted(up_to_BV, wanted_B1, right=True)[:, 0]
    last_B = (p_BV > 0).int().cumsum(-1).argmax(-1)
    return torch.minimum(ids_B, last_B)
