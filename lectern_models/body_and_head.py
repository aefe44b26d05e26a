"""Splits a causal language model into body (ids to hidden states) and head (those to logits).

Legend: B sequences of equal length, S tokens, D hidden size, V vocabulary.

Teachers serve hidden states and students train on them, so both depend on one fact: head(body(ids))
is what the model itself computes. `parity_probe` checks it for each model, because no list of
architectures stays complete.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel

from lectern_common.checks.config_fields import POSITIONS, VOCAB_SIZE, number
from lectern_common.errors import Misconfigured
from lectern_models.logits.masks import first_row_without_distribution
from lectern_models.logits.output_head import HeadTransform, OutputHead
from lectern_models.ranks import whole

# Logits of the scaled probe reach this; a soft-cap of 30 or a cap of 1,000 shows at once.
_PROBE_LOGIT = 512.0
_PROBE_SHAPE = (2, 9)


@dataclass(frozen=True)
class BodyAndHead:
    """A view of a model: the parameters are the model's own, and gradients flow to them."""

    body: nn.Module
    projection: nn.Linear
    transform: HeadTransform

    def hidden_states(self, input_ids_BS: Tensor, position_ids_BS: Tensor | None = None) -> Tensor:
        """Returns final-norm hidden states [B, S, D] in the model's dtype; no KV cache is kept.

        The result is on the head's device, wherever the body's last layer is.

        Args:
            input_ids_BS: int64.
            position_ids_BS: int64; where they restart at 0, a document begins, which attends to
                nothing before it, if the model can do that (packing.py).
        """
        if position_ids_BS is None:
            output = self.body(input_ids=input_ids_BS, use_cache=False)
        else:
            output = self.body(
                input_ids=input_ids_BS, position_ids=position_ids_BS, use_cache=False
            )
        hidden: Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
        return hidden.to(self.projection.weight.device)

    def projected(self, hidden_BSD: Tensor) -> Tensor:
        """Returns hidden @ weight.T + bias, [B, S, V], in the model's own arithmetic.

        If ranks share the model, all of them call it.
        """
        if isinstance(self.projection.weight, DTensor):
            shared: Tensor = self.projection(hidden_BSD)
            return shared
        return F.linear(hidden_BSD, self.projection.weight, self.projection.bias)

    def head(self) -> OutputHead:
        """Returns the head over the live parameters; call again after they were replaced."""
        return OutputHead(self.projection.weight, self.projection.bias, self.transform)

    def whole_head(self) -> OutputHead:
        """Returns the head; if ranks share the model, gathered from all, which all call it."""
        bias = self.projection.bias
        return OutputHead(
            whole(self.projection.weight), None if bias is None else whole(bias), self.transform
        )


def split(model: PreTrainedModel) -> BodyAndHead:
    """Returns the model's body and head, without copies; `parity_probe` checks that they fit.

    Raises:
        Misconfigured: the model has no output projection that is a plain linear layer.
    """
    projection: object = model.get_output_embeddings()
    if not isinstance(projection, nn.Linear):
        raise Misconfigured(
            f"{type(model).__name__} has no linear output projection "
            f"({type(projection).__name__}), so it cannot be split into body and head"
        )
    body: nn.Module = model.get_decoder()
    if body is model:
        raise Misconfigured(f"{type(model).__name__} has no decoder separate from its head")
    return BodyAndHead(body, projection, head_transform(model.config))


def split_or_why(model: PreTrainedModel) -> tuple[BodyAndHead | None, str | None]:
    """Returns (body and head, checked, None), or (None, why the model cannot be split)."""
    try:
        parts = split(model)
    except Misconfigured as error:
        return None, str(error)
    reason = parity_probe(model, parts)
    return (parts, None) if reason is None else (None, reason)


def head_transform(config: PreTrainedConfig) -> HeadTransform:
    """Returns what the model does to its projection's output, according to its config."""
    text = config.get_text_config()

    def setting(name: str, absent: float) -> float:
        value = getattr(text, name, None)
        return absent if value is None else float(value)

    soft_cap = setting("final_logit_softcapping", 0.0)
    return HeadTransform(
        # Cohere, Falcon-H1.
        scale=setting("logit_scale", 1.0) * setting("lm_head_multiplier", 1.0),
        # Granite.
        divisor=setting("logits_scaling", 1.0),
        # Gemma.
        soft_cap=soft_cap or None,
    )


@torch.no_grad()
def parity_probe(model: PreTrainedModel, parts: BodyAndHead) -> str | None:
    """Returns None if body and head reproduce the model's own logits, else the reason.

    Compared in the model's own head arithmetic, bit for bit on the CPU and to 2 units in the last
    place elsewhere: once as the model is and once with the hidden states scaled up, because a
    soft-cap or another curve does not show on small logits. Costs two short forwards of each.

    Raises:
        RuntimeError: ranks share the model, and an exchange between them broke.
    """
    was_training = model.training
    model.train(False)
    try:
        for logit in (None, _PROBE_LOGIT):
            reason = _difference(model, parts, logit)
            if reason is not None:
                return reason
    except (TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and isinstance(parts.projection.weight, DTensor):
            raise
        return f"{type(model).__name__}: body and head do not run separately: {error}"
    finally:
        model.train(was_training)
    return None


def _difference(model: PreTrainedModel, parts: BodyAndHead, logit: float | None) -> str | None:
    device = parts.projection.weight.device
    config = model.config.to_dict()
    sequences, length = _PROBE_SHAPE
    shape = (sequences, min(length, number(config, POSITIONS) or length))
    generator = torch.Generator().manual_seed(0)
    vocab_size = number(config, VOCAB_SIZE) or parts.projection.weight.shape[0]
    input_ids = torch.randint(vocab_size, shape, generator=generator).to(device)
    factor = 1.0 if logit is None else _factor_to_reach(logit, parts, input_ids)
    with _output_scaled(parts.body, factor):
        own: Tensor = model(input_ids=input_ids, use_cache=False).logits
        hidden = parts.hidden_states(input_ids)
    ours = parts.transform(parts.projected(hidden))
    name = type(model).__name__
    if own.shape != ours.shape:
        return f"{name}: body and head give {list(ours.shape)}, but the model {list(own.shape)}"
    if first_row_without_distribution(own.flatten(0, 1)) is not None:
        return f"{name}: the model's own logits are not finite"
    # Ids ruled out by -inf agree if both have it; inf - inf is nan.
    difference = (own.float() - ours.float()).abs().masked_fill(own == ours, 0)
    allowed = 0 if device.type == "cpu" else 2 * _unit_in_the_last_place(own.float(), ours.dtype)
    if not bool((difference <= allowed).all()):  # also if ours is not finite
        largest = difference.max().item()
        return (
            f"{name}: body and head differ from the model's own logits by up to {largest:.3g}"
            + (f" (hidden states scaled by {factor:g})" if logit else "")
            + "; it transforms its logits in an unknown way"
        )
    return None


def _unit_in_the_last_place(values: Tensor, dtype: torch.dtype) -> Tensor:
    exponent = torch.frexp(values).exponent - 1
    return torch.ldexp(torch.full_like(values, torch.finfo(dtype).eps), exponent)


def _factor_to_reach(logit: float, parts: BodyAndHead, input_ids: Tensor) -> float:
    """Returns the power of two that brings the largest projected value to about `logit`."""
    hidden = parts.hidden_states(input_ids)
    product, bias = parts.projected(hidden).float(), parts.projection.bias
    projected = (product if bias is None else product - whole(bias)).abs().max().item()
    if not math.isfinite(projected) or projected == 0:
        return 1.0
    # Hidden states may reach half of the largest number of their dtype.
    room = torch.finfo(hidden.dtype).max / 2 / max(hidden.float().abs().max().item(), 1e-30)
    return float(2.0 ** math.floor(math.log2(min(logit / projected, room))))


@contextlib.contextmanager
def _output_scaled(body: nn.Module, factor: float) -> Iterator[None]:
    """Within the block, the body's hidden states are multiplied by `factor` in every call."""

    def scale(_module: nn.Module, _args: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] * factor, *output[1:])
        output.last_hidden_state = output.last_hidden_state * factor
        return output

    handle = body.register_forward_hook(scale)
    try:
        yield
    finally:
        handle.remove()
