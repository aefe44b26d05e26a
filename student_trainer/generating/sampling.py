"""Chooses the next token of each sequence: the likeliest, or one drawn by a given uniform number.

A draw looks a number u in [0, 1) up in the distribution function over ids. So it depends on the
sequence's own logits and number only, not on a generator's state, the batch, or the order of work.

Legend: B sequences, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest

# The likeliest ids among which the set of `top_p` is looked for before all ids are sorted.
_SORTED_AT_FIRST = 512
# Rows drawn at a time: bounds the float64 sums over the vocabulary.
_ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and how many at most.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest id, the smallest of equals.
        top_p: draws only from the smallest set of likeliest ids that has this probability together
            (nucleus sampling; Holtzman et al., 2020), after `top_k`.
        top_k: draws only from this many likeliest ids; 0 means from all.
        max_new_tokens: length at which a text is cut.

    Raises:
        InvalidRequest: a value is out of bounds; `field` names it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        for field, is_valid, bounds in (
            ("temperature", 0 <= self.temperature < float("inf"), "0 or more, and finite"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all ids) or more"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
        ):
            if not is_valid:
                raise InvalidRequest(f"must be {bounds}; got {getattr(self, field)}", field)


def chosen_ids(logits_BV: Tensor, uniforms_B: Tensor | None, sampling: Sampling) -> list[int]:
    """Returns the next id of each sequence; -1 if its logits have no distribution.

    That is so if one is nan or inf, or all are -inf; some -inf rule their ids out.

    Args:
        logits_BV: of any dtype.
        uniforms_B: float64 in [0, 1), on any device; None only with temperature 0.
        sampling: how.
    """
    largest = logits_BV.max(-1)  # nan if any value is
    ids_B = largest.indices
    if sampling.temperature > 0:
        if uniforms_B is None:
            raise ValueError("a draw needs a uniform number for each sequence")
        ids_B = drawn_ids(logits_BV, uniforms_B, sampling)
    return [int(one) for one in torch.where(largest.values.isfinite(), ids_B, -1).tolist()]


def drawn_ids(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    """Returns the id that each uniform number chooses, int64 [B].

    The smallest id up to which the probability is above u, among the ids that top_k and top_p
    leave. Of equally likely ids at their edge, the smallest stay.
    """
    parts = zip(
        logits_BV.split(_ROWS_AT_A_TIME),
        uniforms_B.to(logits_BV.device).split(_ROWS_AT_A_TIME),
        strict=True,
    )
    return torch.cat([_drawn(logits_CV, uniforms_C, sampling) for logits_CV, uniforms_C in parts])


def _drawn(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
    # Weights that are at most 1: the likeliest id has exactly 1, however low the temperature.
    weights_BV = ((wide_BV - wide_BV.amax(-1, keepdim=True)) / sampling.temperature).exp()
    if 0 < sampling.top_k < weights_BV.shape[-1]:
        edge_B1 = weights_BV.topk(sampling.top_k).values[:, -1:]
        weights_BV = _likeliest(weights_BV, edge_B1, sampling.top_k)
    if sampling.top_p < 1:
        weights_BV = _nucleus(weights_BV, sampling.top_p)
    up_to_BV = weights_BV.cumsum(-1, dtype=torch.float64)
    total_B1 = up_to_BV[:, -1:].contiguous()
    ids_B1 = torch.searchsorted(up_to_BV, uniforms_B[:, None].double() * total_B1, right=True)
    # u * total may round up to the total; the id with which that is reached is the last possible.
    return torch.minimum(ids_B1, torch.searchsorted(up_to_BV, total_B1))[:, 0]


def _nucleus(weights_BV: Tensor, top_p: float) -> Tensor:
    """Returns the weights with 0 for ids outside the smallest set with the probability `top_p`."""
    wanted_B1 = weights_BV.sum(-1, keepdim=True, dtype=torch.float64) * top_p
    vocab_size = weights_BV.shape[-1]
    for width in (min(_SORTED_AT_FIRST, vocab_size), vocab_size):
        sorted_BK = weights_BV.topk(width, sorted=True).values
        up_to_BK = sorted_BK.cumsum(-1, dtype=torch.float64)
        if bool((up_to_BK[:, -1:] >= wanted_B1).all()):
            break
    # An id stays if the likelier ones do not reach `top_p` by themselves.
    counts_B1 = (up_to_BK - sorted_BK < wanted_B1).sum(-1, keepdim=True).clamp(min=1)
    return _likeliest(weights_BV, sorted_BK.gather(-1, counts_B1 - 1), counts_B1)


def _likeliest(weights_BV: Tensor, edge_B1: Tensor, counts: Tensor | int) -> Tensor:
    """Returns the weights with 0 for all but each row's `counts` largest, down to `edge_B1`.

    Of those that equal the edge the smallest ids stay, whatever order a sort gives them.
    """
    above_BV, equal_BV = weights_BV > edge_B1, weights_BV == edge_B1
    left_B1 = counts - above_BV.sum(-1, keepdim=True)
    return weights_BV.where(above_BV | (equal_BV & (equal_BV.cumsum(-1) <= left_B1)), 0)
