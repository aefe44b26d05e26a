"""Gradients of hidden states, weight and bias, from the gradient by their product, in chunks.

Legend: N tokens, n tokens of a chunk, V vocabulary, D hidden size.
"""

import torch
from torch import Tensor

from lectern_models.output_head import OutputHead
from lectern_models.products import add_gradient_by_weight, gradient_by_hidden, product_dtype


class HeadGradients:
    """The sums, float32 (float64 where the hidden states are); None where not wanted."""

    def __init__(
        self, hidden_ND: Tensor, head: OutputHead, wanted: tuple[bool, bool, bool]
    ) -> None:
        """Args:
        hidden_ND: all hidden states; only shape, dtype and device are used.
        head: the same of weight and bias.
        wanted: whether the gradients of hidden states, weight and bias are.
        """
        hidden, weight, bias = wanted
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        self._head = head
        self._factor_dtype = product_dtype(hidden_ND)
        self._hidden_ND = torch.empty_like(hidden_ND) if hidden else None
        self._weight_VD = torch.zeros_like(head.weight_VD, dtype=dtype) if weight else None
        self._bias_V = None
        if bias and head.bias_V is not None:
            self._bias_V = torch.zeros_like(head.bias_V, dtype=dtype)

    def add(self, rows: slice, hidden_nD: Tensor, weight_VD: Tensor, gradient_nV: Tensor) -> None:
        """Takes in the gradient by hidden_nD @ weight.T, a chunk's `rows` of all."""
        if self._bias_V is not None:
            self._bias_V += gradient_nV.sum(0)
        gradient_nV = gradient_nV.to(self._factor_dtype)
        if self._hidden_ND is not None:
            self._hidden_ND[rows] = gradient_by_hidden(gradient_nV, weight_VD)
        if self._weight_VD is not None:
            add_gradient_by_weight(self._weight_VD, gradient_nV, hidden_nD)

    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the gradients of hidden states, weight and bias in their parameters' dtypes."""
        weight, bias = self._weight_VD, self._bias_V
        return (
            self._hidden_ND,
            None if weight is None else weight.to(self._head.weight_VD.dtype),
            None if bias is None or self._head.bias_V is None else bias.to(self._head.bias_V.dtype),
        )
