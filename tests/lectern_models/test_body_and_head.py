"""Body and head, compared with the models' own forward, and what the probe catches."""

import dataclasses
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from lectern_common.errors import Misconfigured
from lectern_models.body_and_head import parity_probe, split, split_or_why
from lectern_models.logits.output_head import HeadTransform, OutputHead
from tests.support.models import ARCHITECTURES, write_tiny_model

KNOWN = tuple(name for name in ARCHITECTURES if name != "hyperclovax")


def plain(folder: Path, **kwargs: object) -> PreTrainedModel:
    """Returns the model as a user of transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", KNOWN)
def test_body_and_head_reproduce_the_model(tmp_path: Path, architecture: str, dtype: str) -> None:
    model = plain(write_tiny_model(tmp_path, architecture), dtype=getattr(torch, dtype))
    parts = split(model)
    assert parity_probe(model, parts) is None

    input_ids = torch.arange(14).view(2, 7)
    with torch.no_grad():
        own = model(input_ids).logits
        hidden = parts.hidden_states(input_ids)
        head = parts.head()
        ours = head.transform(F.linear(hidden, head.weight_VD, head.bias_V))
    assert hidden.dtype == model.dtype
    assert torch.equal(ours, own)


@pytest.mark.parametrize("architecture", KNOWN)
def test_float32_head_gives_the_models_logits(tmp_path: Path, architecture: str) -> None:
    model = plain(write_tiny_model(tmp_path, architecture))
    parts = split(model)
    input_ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        own = model(input_ids).logits[0]
        ours = parts.head().logits(parts.hidden_states(input_ids)[0])
        few = parts.head().sliced(11).logits(parts.hidden_states(input_ids)[0])
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few, own[:, :11], atol=1e-5, rtol=1e-5)


def test_probe_catches_a_transform_that_the_config_misnames(tmp_path: Path) -> None:
    """HyperCLOVA X multiplies by the setting that Granite divides by."""
    model = plain(write_tiny_model(tmp_path, "hyperclovax"))
    assert parity_probe(model, split(model)) is not None


def test_probe_catches_a_body_that_stops_before_the_final_norm(tmp_path: Path) -> None:
    model = plain(write_tiny_model(tmp_path, "qwen2"))
    parts = split(model)

    class BeforeTheNorm(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> tuple[torch.Tensor]:
            return (model.model.embed_tokens(input_ids),)

    reason = parity_probe(model, dataclasses.replace(parts, body=BeforeTheNorm()))
    assert reason is not None and "differ" in reason


def test_probe_catches_a_changed_weight_and_a_missing_bias(tmp_path: Path) -> None:
    model = plain(write_tiny_model(tmp_path, "phi"))
    parts = split(model)
    with torch.no_grad():
        model.lm_head.bias.add_(0.5)
    assert parity_probe(model, parts) is None  # live parameters

    unbiased = torch.nn.Linear(32, 97, bias=False)
    unbiased.weight = model.lm_head.weight
    assert parity_probe(model, dataclasses.replace(parts, projection=unbiased)) is not None


def test_probe_refuses_a_model_whose_logits_are_not_finite(tmp_path: Path) -> None:
    model = plain(write_tiny_model(tmp_path))
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    reason = parity_probe(model, split(model))
    assert reason is not None and "not finite" in reason


def test_probe_leaves_the_model_unchanged(tmp_path: Path) -> None:
    model = plain(write_tiny_model(tmp_path)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = split(model)
    parity_probe(model, parts)
    assert model.training
    assert not parts.body._forward_hooks
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_gradients_through_body_and_head_are_the_models_own(
    tmp_path: Path, architecture: str, tied: bool
) -> None:
    model = plain(write_tiny_model(tmp_path, architecture, tied=tied))
    input_ids = torch.arange(12).view(2, 6)
    labels = torch.arange(1, 13)

    F.cross_entropy(model(input_ids).logits.flatten(0, 1), labels).backward()
    own = {name: cast(Tensor, value.grad).clone() for name, value in model.named_parameters()}
    model.zero_grad()
    parts = split(model)
    logits = parts.head().logits(parts.hidden_states(input_ids).flatten(0, 1))
    F.cross_entropy(logits, labels).backward()

    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, own[name], atol=1e-6, rtol=1e-4)


def test_a_model_without_a_linear_head_is_refused(tmp_path: Path) -> None:
    model = plain(write_tiny_model(tmp_path))
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(Misconfigured, match="no linear output projection"):
        split(model)


def test_a_model_that_cannot_be_split_gives_the_reason(tmp_path: Path) -> None:
    model = plain(write_tiny_model(tmp_path))
    parts, reason = split_or_why(model)
    assert parts is not None and reason is None
    assert parts.projection is model.lm_head and parts.body is model.model

    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    assert split_or_why(model) == (None, "Qwen2ForCausalLM: the model's own logits are not finite")

    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert split_or_why(model) == (
        None,
        "Qwen2ForCausalLM has no linear output projection (Sequential), so it cannot be split into "
        "body and head",
    )


def test_a_widened_head_has_the_same_values_in_float32() -> None:
    weight, bias = torch.tensor([[1.5, -0.25], [3.0, 1e-3]]).bfloat16(), torch.ones(2).bfloat16()
    head = OutputHead(weight, bias, HeadTransform(scale=0.5))
    wide = head.widened()
    assert wide.bias_V is not None
    assert wide.weight_VD.dtype == wide.bias_V.dtype == torch.float32
    assert wide.weight_VD.tolist() == weight.tolist() and wide.bias_V.tolist() == [1.0, 1.0]
    assert wide.transform == head.transform and head.weight_VD is weight
    assert OutputHead(weight).widened().bias_V is None


def test_head_logits_are_float32_from_bfloat16_states() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 8, generator=generator).bfloat16()
    weight = torch.randn(11, 8, generator=generator).bfloat16()
    bias = torch.randn(11, generator=generator).bfloat16()
    logits = OutputHead(weight, bias, HeadTransform(divisor=4.0, soft_cap=2.0)).logits(hidden)
    exact = (hidden.double() @ weight.double().T + bias.double()) / 4.0
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), 2.0 * torch.tanh(exact / 2.0), atol=1e-6, rtol=1e-6)
