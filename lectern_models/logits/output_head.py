"""The output head: maps final hidden states to logits, independent of the model.

Legend: N tokens, D hidden size, V vocabulary.

    logits = soft_cap * tanh(x / soft_cap),  x = (hidden @ weight.T + bias) * scale / divisor
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lectern_models.logits.products import projected


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
        """Returns the logits from the projection's output, same shape and dtype; the input is kept.

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

    def widened(self) -> "OutputHead":
        """Returns the head in float32 on the CPU, where every product would convert it again.

        On CUDA returns the head itself: a copy would cost memory, and converting takes no time.
        """
        if self.weight_VD.is_cuda:
            return self
        bias = None if self.bias_V is None else self.bias_V.float()
        return OutputHead(self.weight_VD.float(), bias, self.transform)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Returns float32 logits [N, V], accumulated in float32 whatever the stored dtype.

        A 16-bit logit spoils the KD gradient if student and teacher are close (bfloat16 by
        20 %), so nothing here rounds below float32. float64 hidden states give float64 logits.

        Args:
            hidden_ND: hidden states after the final norm.
        """
        return self.transformed(projected(hidden_ND, self.weight_VD))

    def transformed(self, projected_NV: Tensor) -> Tensor:
        """Returns the logits from hidden @ weight.T, which is left unchanged.

        The same tensor if there is nothing to do. Elementwise, so rows may come in parts.
        """
        if self.bias_V is not None:
            projected_NV = projected_NV + self.bias_V.to(projected_NV.dtype)
        return self.transform(projected_NV)
