"""Each transform of a model's logits, removed in turn: the probe must notice."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from lectern_models.body_and_head import BodyAndHead, parity_probe, split
from lectern_models.logits.output_head import HeadTransform
from tests.support.models import write_tiny_model

# Architecture, settings, what its head does.
TRANSFORMS: list[tuple[str, dict[str, Any], HeadTransform]] = [
    ("cohere", {"logit_scale": 0.25}, HeadTransform(scale=0.25)),
    ("granite", {"logits_scaling": 8.0}, HeadTransform(divisor=8.0)),
    ("falcon_h1", {"lm_head_multiplier": 0.5}, HeadTransform(scale=0.5)),
    # Powers of two: dividing and multiplying by them rounds nothing, so small logits hide them.
    ("gemma2", {"final_logit_softcapping": 32.0}, HeadTransform(soft_cap=32.0)),
    ("gemma2", {"final_logit_softcapping": 1024.0}, HeadTransform(soft_cap=1024.0)),
]
IDS = [f"{name}-{next(iter(settings.values()))}" for name, settings, _ in TRANSFORMS]
# Spread of the initial weights: large, transformers' own, and so small that logits are about 1e-5.
SPREADS = [0.2, 0.02, 0.0002]


def plain(folder: Path, architecture: str, **settings: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(write_tiny_model(folder, architecture, **settings))


def projected_by(parts: BodyAndHead, projection: torch.nn.Linear) -> BodyAndHead:
    return dataclasses.replace(parts, projection=projection)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("architecture", "settings", "transform"), TRANSFORMS, ids=IDS)
def test_a_missing_transform_is_caught(
    tmp_path: Path,
    architecture: str,
    settings: dict[str, Any],
    transform: HeadTransform,
    dtype: str,
    spread: float,
) -> None:
    model = plain(tmp_path, architecture, spread=spread, dtype=dtype, **settings)
    assert model.dtype is getattr(torch, dtype)
    parts = split(model)
    assert parts.transform == transform
    assert parity_probe(model, parts) is None
    for without in (
        dataclasses.replace(transform, scale=1.0),
        dataclasses.replace(transform, divisor=1.0),
        dataclasses.replace(transform, soft_cap=None),
    ):
        if without != transform:
            reason = parity_probe(model, dataclasses.replace(parts, transform=without))
            assert reason is not None and "differ from the model's own logits" in reason


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(
    "transform",
    [HeadTransform(scale=0.5), HeadTransform(divisor=2.0), HeadTransform(soft_cap=1024.0)],
    ids=["scale", "divisor", "soft_cap"],
)
def test_a_transform_that_the_model_does_not_have_is_caught(
    tmp_path: Path, transform: HeadTransform, spread: float
) -> None:
    model = plain(tmp_path, "qwen2", spread=spread)
    parts = split(model)
    assert parts.transform == HeadTransform()
    reason = parity_probe(model, dataclasses.replace(parts, transform=transform))
    assert reason is not None and "differ from the model's own logits" in reason


def test_the_soft_cap_of_the_smallest_logits_shows_only_when_they_are_scaled_up(
    tmp_path: Path,
) -> None:
    model = plain(tmp_path, "gemma2", spread=0.0002, final_logit_softcapping=1024.0)
    parts = split(model)
    ids = torch.arange(18).view(2, 9)
    with torch.no_grad():
        uncapped = F.linear(parts.hidden_states(ids), parts.projection.weight)
        assert torch.equal(uncapped, model(ids).logits)
    reason = parity_probe(model, dataclasses.replace(parts, transform=HeadTransform()))
    assert reason is not None and "scaled by" in reason


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_missing_bias_is_caught(tmp_path: Path, dtype: str, spread: float) -> None:
    """A small bias does not show beside scaled-up logits."""
    model = plain(tmp_path, "phi", spread=spread, dtype=dtype)
    with torch.no_grad():
        model.lm_head.bias.normal_(std=spread, generator=torch.Generator().manual_seed(0))
    parts = split(model)
    assert parity_probe(model, parts) is None
    assert parts.head().bias_V is not None
    unbiased = torch.nn.Linear(32, 97, bias=False)
    unbiased.weight = model.lm_head.weight
    assert parity_probe(model, projected_by(parts, unbiased)) is not None


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "mixtral", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_is_the_head_only_if_they_are_tied(
    tmp_path: Path, architecture: str, tied: bool, spread: float
) -> None:
    model = plain(tmp_path, architecture, tied=tied, spread=spread)
    parts = split(model)
    assert parity_probe(model, parts) is None
    embedding = torch.nn.Linear(32, 97, bias=False)
    embeddings: Any = model.get_input_embeddings()
    embedding.weight = embeddings.weight
    reason = parity_probe(model, projected_by(parts, embedding))
    assert (reason is None) == tied


@pytest.mark.parametrize("spread", SPREADS)
def test_unused_experts_are_caught(tmp_path: Path, spread: float) -> None:
    """The body of a mixture of experts, with all of its experts and with one fewer."""
    model = plain(tmp_path / "whole", "mixtral", spread=spread)
    parts = split(model)
    assert parity_probe(model, parts) is None
    fewer = plain(tmp_path / "fewer", "mixtral", spread=spread, num_experts_per_tok=1)
    fewer.load_state_dict(model.state_dict())
    reason = parity_probe(model, dataclasses.replace(parts, body=split(fewer).body))
    assert reason is not None and "differ from the model's own logits" in reason
