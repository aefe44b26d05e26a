"""AdamW's parameters and moments; the learning rate of each step."""

import math

import pytest
import torch
from torch import nn

from student_trainer.run.optim import Schedule, build_adamw, set_learning_rate


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)


def test_only_matrices_decay_and_each_tensor_counts_once() -> None:
    model = Tied()
    optimizer = build_adamw(model, betas=(0.8, 0.9), weight_decay=0.3)
    decaying, others = optimizer.param_groups
    assert decaying["weight_decay"] == 0.3
    assert [id(p) for p in decaying["params"]] == [id(model.embedding.weight)]
    assert others["weight_decay"] == 0.0
    assert {id(p) for p in others["params"]} == {
        id(model.norm.weight),
        id(model.norm.bias),
        id(model.head.bias),
    }
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_decay_without_a_gradient_changes_only_matrices() -> None:
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_adamw(model, betas=(0.9, 0.95), weight_decay=0.5)
    set_learning_rate(optimizer, 0.1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    torch.testing.assert_close(after["embedding.weight"], before["embedding.weight"] * 0.95)
    for name in ("norm.weight", "norm.bias", "head.bias", "frozen.weight"):
        assert torch.equal(after[name], before[name])


def test_the_learning_rate_is_set_for_every_group() -> None:
    optimizer = build_adamw(Tied(), betas=(0.9, 0.95), weight_decay=0.1)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_a_model_of_only_matrices_has_one_group() -> None:
    assert len(build_adamw(nn.Embedding(2, 2), (0.9, 0.95), 0.1).param_groups) == 1


def test_one_step_matches_the_formula() -> None:
    """AdamW (Loshchilov and Hutter, 2019) at step 1, by hand, in float64."""
    weight = nn.Linear(4, 3, bias=False)
    before = weight.weight.detach().double().clone()
    gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    optimizer = build_adamw(weight, betas=(0.9, 0.95), weight_decay=0.1)
    set_learning_rate(optimizer, 0.01)
    weight.weight.grad = gradient.clone()
    optimizer.step()
    # The bias-corrected moments are the gradient and its square.
    step = gradient.double() / (gradient.double().abs() + 1e-8)
    expected = before * (1 - 0.01 * 0.1) - 0.01 * step
    torch.testing.assert_close(weight.weight.detach().double(), expected, rtol=0, atol=1e-7)


def test_one_kernel_updates_a_tensor_and_its_step_count() -> None:
    model = Tied()
    optimizer = build_adamw(model, betas=(0.9, 0.95), weight_decay=0.1)
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    model.embedding(torch.tensor([1])).sum().backward()
    optimizer.step()
    state = optimizer.state[model.embedding.weight]
    assert state["step"].device == model.embedding.weight.device
    assert state["step"].item() == 1


def rates(**changes: object) -> list[float]:
    settings = {
        "peak": 2.0,
        "steps": 9,
        "warmup_steps": 4,
        "decay": "linear",
        "final_fraction": 0.1,
    }
    schedule = Schedule(**{**settings, **changes})  # type: ignore[arg-type]
    return [schedule.learning_rate(step) for step in range(schedule.steps)]


def test_warm_up_rises_linearly_to_the_peak() -> None:
    assert rates()[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_linear_decay_ends_at_the_final_fraction_in_the_last_step() -> None:
    assert rates()[4:] == pytest.approx([2 - 0.36 * n for n in range(1, 6)])
    assert rates()[-1] == pytest.approx(0.2)


def test_cosine_decay_is_half_way_down_in_the_middle() -> None:
    values = rates(decay="cosine", warmup_steps=0, final_fraction=0.0)
    assert values[0] == 2.0
    assert values[4] == pytest.approx(1.0)
    assert values[2] == pytest.approx(1 + math.cos(math.pi / 4))
    assert values[-1] == pytest.approx(0.0, abs=1e-15)


def test_cosine_ends_at_the_final_fraction() -> None:
    assert rates(decay="cosine")[-1] == pytest.approx(0.2)


def test_constant_stays_at_the_peak_whatever_the_final_fraction() -> None:
    assert rates(decay="constant")[3:] == [2.0] * 6


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(warmup_steps=0)[0] == 2.0


def test_a_run_of_one_step_has_the_peak() -> None:
    assert rates(steps=1, warmup_steps=0) == [2.0]
    assert rates(steps=1, warmup_steps=1) == [2.0]


def test_warm_up_may_last_the_whole_run() -> None:
    assert rates(steps=4)[-1] == 2.0
