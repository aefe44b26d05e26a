"""The three products with an output head's weight, in float32 for factors of any dtype.

Legend: N tokens, V vocabulary, D hidden size.

The CPU multiplies only float32: 16-bit factors are widened, which is exact, and a weight is widened
a piece at a time, so that no copy of it exists. CUDA multiplies 16-bit factors exactly and adds in
float32. With float64 hidden states everything is float64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

# With fewer rows most CPUs add in another order: negligible for a row's logits, but not for the
# small difference between student and teacher, which chunks of any size should see alike.
_MIN_ROWS = 16
# Numbers of a weight widened at a time: many for a fast product, few to save memory.
_PIECE_NUMEL = 1 << 20


def product_dtype(hidden_ND: Tensor) -> torch.dtype:
    """Returns the dtype for the factors of products with these hidden states.

    bfloat16 on CUDA if they are: only the gradient by the logits is rounded to it, an error of
    0.2 % of its norm. Never float16, in which a gradient's smallest parts would be 0.
    """
    if hidden_ND.is_cuda and hidden_ND.dtype == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(hidden_ND.dtype, torch.float32)


def projected(hidden_ND: Tensor, weight_VD: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns hidden @ weight.T [N, V], float32 or float64.

    Without `out` it is differentiable, and on the CPU a 16-bit weight is widened as a whole. How a
    row is rounded may depend on the other rows; blocks.py sees to that where it must not.

    Args:
        out: [N, V] of the result's dtype, overwritten with the result.
    """
    if hidden_ND.is_cuda and hidden_ND.dtype in (torch.bfloat16, torch.float16):
        weight_DV = weight_VD.to(hidden_ND.dtype).T
        return torch.mm(hidden_ND, weight_DV, out_dtype=torch.float32, out=out)
    dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
    hidden_ND = hidden_ND.to(dtype)
    if out is None:
        return torch.mm(hidden_ND, weight_VD.to(dtype).T)
    num_rows = len(hidden_ND)
    if 0 < num_rows < _MIN_ROWS:
        padded_ND = functional.pad(hidden_ND, (0, 0, 0, _MIN_ROWS - num_rows))
        result = projected(padded_ND, weight_VD, out.new_empty(_MIN_ROWS, out.shape[1]))
        return out.copy_(result[:num_rows])
    for ids, piece_vD in _pieces(weight_VD, dtype):
        torch.mm(hidden_ND, piece_vD.T, out=out[:, ids])
    return out


def gradient_by_hidden(gradient_NV: Tensor, weight_VD: Tensor) -> Tensor:
    """Returns gradient @ weight [N, D], float32 or float64; the gradient is in `product_dtype`."""
    if gradient_NV.is_cuda and gradient_NV.dtype == torch.bfloat16:
        return torch.mm(gradient_NV, weight_VD.to(gradient_NV.dtype), out_dtype=torch.float32)
    gradient_NV = gradient_NV.to(torch.promote_types(gradient_NV.dtype, torch.float32))
    result_ND = gradient_NV.new_zeros(len(gradient_NV), weight_VD.shape[1])
    for ids, piece_vD in _pieces(weight_VD, gradient_NV.dtype):
        result_ND.addmm_(gradient_NV[:, ids], piece_vD)
    return result_ND


def add_gradient_by_weight(sum_VD: Tensor, gradient_NV: Tensor, hidden_ND: Tensor) -> None:
    """Adds gradient.T @ hidden to the float32 or float64 sum; gradient in `product_dtype`."""
    if gradient_NV.is_cuda and gradient_NV.dtype == torch.bfloat16:
        torch.addmm(
            sum_VD,
            gradient_NV.T,
            hidden_ND.to(gradient_NV.dtype),
            out_dtype=sum_VD.dtype,
            out=sum_VD,
        )
    else:
        sum_VD.addmm_(gradient_NV.to(sum_VD.dtype).T, hidden_ND.to(sum_VD.dtype))


def _pieces(weight_VD: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yields (ids, their rows in that dtype); all at once if there is nothing to widen."""
    vocab_size, hidden_size = weight_VD.shape
    size = vocab_size
    if weight_VD.dtype != dtype:
        size = min(vocab_size, max(1, _PIECE_NUMEL // hidden_size))
    for start in range(0, vocab_size, size):
        ids = slice(start, min(start + size, vocab_size))
        yield ids, weight_VD[ids].to(dtype)
