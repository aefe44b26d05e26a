"""The output head: the map from final hidden states to logits, apart from its model.

Legend: N tokens, D hidden size, V vocabulary.

    logits = soft_cap * tanh(x / soft_cap),  x = (hidden @ weight.T + bias) * scale / divisor
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadTransform:
    """What a model does to its projection's output; the defaults do nothing.

    `scale` is Cohere's logit_scale or Falcon-H1's lm_head_multiplier, `divisor` Granite's
    logits_scaling, `soft_cap` Gemma's final_logit_softcapping.
    """

    scale: float = 1.0
    divisor: float = 1.0
    soft_cap: float | None = None

    def __call__(self, projected: Tensor) -> Tensor:
        """Returns the logits of the projection's output, same shape and dtype; the input is kept.

        The operations and their order are the models' own, so results are bit-equal to theirs.
        """
        if self.scale != 1.0:
            projected = projected * self.scale
        if self.divisor != 1.0:
            projected = projected / self.divisor
        if self.soft_cap is not None:
            projected = torch.tanh(projected / self.soft_cap) * self.soft_cap
        return projected

    def derivative(self, logits: Tensor) -> Tensor | float:
        """Returns d logits / d projected, elementwise, from the logits that `__call__` returned."""
        slope = self.scale / self.divisor
        if self.soft_cap is None:
            return slope
        return slope * (1 - (logits / self.soft_cap).square())


@dataclass(frozen=True)
class OutputHead:
    """Projection and transform. A student's holds its live parameters, a teacher's frozen ones."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    transform: HeadTransform = HeadTransform()

    @property
    def vocab_size(self) -> int:
        return self.weight_VD.shape[0]

    def sliced(self, vocab_size: int) -> "OutputHead":
        """Returns the head of ids 0 .. vocab_size - 1 (views, no copy)."""
        bias = None if self.bias_V is None else self.bias_V[:vocab_size]
        return OutputHead(self.weight_VD[:vocab_size], bias, self.transform)

    def logits(self, hidden_ND: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns float32 logits [N, V], accumulated in float32 whatever the stored dtype.

        A 16-bit logit spoils the KD gradient where student and teacher are close (bfloat16 by
        20 %), so nothing here rounds below float32. float64 hidden states give float64 logits.

        Args:
            hidden_ND: hidden states after the final norm.
            out: [N, V] of the result's dtype, whose memory may be used; without gradient only.
        """
        if hidden_ND.is_cuda and hidden_ND.dtype in (torch.bfloat16, torch.float16):
            projected = torch.mm(
                hidden_ND, self.weight_VD.to(hidden_ND.dtype).T, out_dtype=torch.float32
            )
        else:
            dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
            projected = torch.mm(hidden_ND.to(dtype), self.weight_VD.to(dtype).T, out=out)
        if self.bias_V is not None:
            bias = self.bias_V.to(projected.dtype)
            projected = projected + bias if out is None else projected.add_(bias)
        return self.transform(projected)
