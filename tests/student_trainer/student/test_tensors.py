"""A student's and its optimizer's state as named tensors."""

import pytest
import torch
from torch import Tensor, nn

from lectern_common.errors import CorruptData
from student_trainer.run.optim import build_adamw, set_learning_rate
from student_trainer.student.tensors import (
    all_tensors,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
)


class Small(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight
        self.register_buffer("kept", torch.full((2,), float(seed)))
        self.register_buffer("derived", torch.zeros(2), persistent=False)

    def loss(self, ids: Tensor) -> Tensor:
        loss: Tensor = self.head(self.embedding(ids)).square().sum()
        return loss


def trained(model: Small, optimizer: torch.optim.Optimizer, steps: int) -> None:
    set_learning_rate(optimizer, 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(torch.tensor([1, 2])).backward()
        optimizer.step()


def test_tensors_are_the_parameters_once_and_the_saved_buffers() -> None:
    assert set(model_tensors(Small(0))) == {"embedding.weight", "head.bias", "kept"}


def test_a_restored_student_continues_bit_for_bit() -> None:
    straight = Small(0)
    optimizer = build_adamw(straight, (0.9, 0.95), 0.1)
    trained(straight, optimizer, 3)
    saved = {name: value.clone() for name, value in model_tensors(straight).items()}
    saved_optimizer = {
        name: value.clone() for name, value in optimizer_tensors(optimizer, straight).items()
    }
    trained(straight, optimizer, 4)

    resumed = Small(1)
    fresh = build_adamw(resumed, (0.9, 0.95), 0.1)
    load_model_tensors(resumed, saved)
    load_optimizer_tensors(fresh, resumed, saved_optimizer)
    trained(resumed, fresh, 4)
    for name, value in model_tensors(straight).items():
        assert torch.equal(value, model_tensors(resumed)[name]), name


def test_an_optimizer_before_its_first_step_has_no_state() -> None:
    model = Small(0)
    optimizer = build_adamw(model, (0.9, 0.95), 0.1)
    assert optimizer_tensors(optimizer, model) == {}
    load_optimizer_tensors(optimizer, model, {})


def test_tensors_of_another_model_are_refused() -> None:
    model = Small(0)
    tensors = model_tensors(model)
    with pytest.raises(CorruptData, match="only one has more"):
        load_model_tensors(model, {**tensors, "more": torch.zeros(1)})
    with pytest.raises(CorruptData, match=r"head.bias has shape \[4\], expected \[5\]"):
        load_model_tensors(model, {**tensors, "head.bias": torch.zeros(4)})


def test_an_optimizer_state_that_does_not_fit_is_refused() -> None:
    model = Small(0)
    optimizer = build_adamw(model, (0.9, 0.95), 0.1)
    trained(model, optimizer, 1)
    tensors = optimizer_tensors(optimizer, model)
    fresh = build_adamw(model, (0.9, 0.95), 0.1)
    for broken, message in (
        ({k: v for k, v in tensors.items() if k != "head.bias/step"}, "incomplete"),
        ({**tensors, "head.bias/exp_avg": torch.zeros(2)}, "differs in shape"),
        ({**tensors, "other/step": torch.zeros(())}, "the student no such parameter"),
    ):
        with pytest.raises(CorruptData, match=message):
            load_optimizer_tensors(fresh, model, broken)


def test_frozen_parameters_are_neither_saved_nor_expected() -> None:
    model, other = Small(0), Small(1)
    for frozen in (model, other):
        frozen.embedding.weight.requires_grad_(False)
    tensors = model_tensors(model)
    assert set(tensors) == {"head.bias", "kept"}
    assert set(all_tensors(model)) == {"embedding.weight", "head.bias", "kept"}
    before = other.embedding.weight.clone()
    load_model_tensors(other, tensors)
    assert torch.equal(other.embedding.weight, before)
    assert torch.equal(other.head.bias, model.head.bias)
    with pytest.raises(CorruptData, match=r"only one has embedding\.weight"):
        load_model_tensors(other, all_tensors(model))
