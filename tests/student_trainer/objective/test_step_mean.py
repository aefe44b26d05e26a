"""The mean runs over a whole step's valid positions; masked positions have no part in it.

Legend: B sequences, S tokens, N valid positions, V vocabulary, D hidden size.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lectern_models.logits.output_head import HeadTransform, OutputHead
from student_trainer.batch import Batch
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.student.forward import at_valid_positions
from student_trainer.targets import IGNORE_INDEX, DenseTargets
from tests.student_trainer.objective.test_loss import largest_error

torch.set_num_threads(1)

B, S, V, D = 32, 6, 23, 8
CPU = torch.device("cpu")


class Embedding(torch.nn.Module):
    """A student whose hidden states are its embedding, which may be its head's weight too."""

    def __init__(self, tied=False, dtype=torch.float32, transform=HeadTransform()):  # noqa: B008
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return torch.nn.Parameter(values.to(dtype))

        self.embedding_VD, self.bias_V = normal(V, D), normal(V)
        self.weight_VD = self.embedding_VD if tied else normal(V, D)
        self.transform = transform
        self.masked = None  # True where the hidden state is not a number

    def forward(self, input_ids_BS, compute, position_ids_BS=None):
        hidden_BSD = torch.tanh(self.embedding_VD[input_ids_BS])
        if self.masked is not None:
            hidden_BSD = hidden_BSD.masked_fill(self.masked[..., None], math.nan)
        return compute(hidden_BSD, OutputHead(self.weight_VD, self.bias_V, self.transform))

    def gradients(self):
        return {name: parameter.grad for name, parameter in self.named_parameters()}


def uneven_batch():
    """Rows of which none, some or all positions are valid."""
    generator = np.random.default_rng(0)
    inputs_BS = generator.integers(V, size=(B, S))
    labels_BS = generator.integers(V, size=(B, S))
    valid_B = np.resize(np.arange(S + 1), B)  # 0, 1, ... 6, 0, 1, ...
    valid_B[8:16] = 0  # one of four micro-batches has none at all
    labels_BS[np.arange(S) >= valid_B[:, None]] = IGNORE_INDEX
    return Batch(inputs_BS, labels_BS)


def teacher_targets(batch):
    """Dense targets at the valid positions; every token's row is drawn for that token alone."""
    logits_VV = torch.randn(V, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DenseTargets(logits_VV[torch.from_numpy(batch.inputs_BS[batch.valid_BS])])


def loss_of(batch, normalizer, objective):
    """Returns what at_valid_positions computes: the loss of the batch's rows."""

    def compute(hidden_ND, head, labels_N):
        targets = teacher_targets(batch)
        return distillation_loss(hidden_ND, head, labels_N, targets, objective, normalizer)

    return compute


def step(student, batch, sequences, objective=Objective(0.4, 2.0, chunk_tokens=7)):  # noqa: B008
    """Computes one step's micro-batches; returns its loss."""
    total = 0.0
    for part in batch.micro_batches(sequences):
        compute = loss_of(part, batch.num_valid, objective)
        loss = at_valid_positions(student, part, CPU, compute)
        loss.total.backward()
        total += loss.total.item()
    return total


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sequences", [1, 5, 8, 16])
def test_micro_batches_give_the_gradients_of_the_whole_step(sequences, tied):
    """32 sequences at once, as 4 x 8, 2 x 16, 32 x 1; masks so uneven that 8 have no position."""
    batch = uneven_batch()
    whole, parts = Embedding(tied), Embedding(tied)
    assert step(parts, batch, sequences) == pytest.approx(step(whole, batch, B), rel=1e-6)
    for name, gradient in whole.gradients().items():
        assert largest_error(parts.gradients()[name], gradient.double()) < 1e-6


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_and_untied_heads_with_bias_and_transform_equal_float64_autograd(tied, soft_cap):
    """Through the body: a tied weight gets the gradients of both its uses."""
    batch, objective = uneven_batch(), Objective(0.4, 2.0, chunk_tokens=7)
    transform = HeadTransform(scale=1.5, divisor=2.0, soft_cap=soft_cap)
    ours, exact = Embedding(tied, transform=transform), Embedding(tied, torch.float64, transform)
    exact.load_state_dict(ours.state_dict())
    step(ours, batch, 8, objective)

    hidden_ND = torch.tanh(exact.embedding_VD[torch.from_numpy(batch.inputs_BS[batch.valid_BS])])
    logits_NV = (hidden_ND @ exact.weight_VD.T + exact.bias_V) * 1.5 / 2
    if soft_cap is not None:
        logits_NV = soft_cap * torch.tanh(logits_NV / soft_cap)
    labels_N = torch.from_numpy(batch.labels_BS[batch.valid_BS])
    divergence = F.kl_div(
        F.log_softmax(logits_NV / 2, -1),
        F.log_softmax(teacher_targets(batch).logits_NV / 2, -1),
        log_target=True,
        reduction="batchmean",
    )
    (0.4 * F.cross_entropy(logits_NV, labels_N) + 0.6 * 4 * divergence).backward()
    for name, gradient in exact.gradients().items():
        assert largest_error(ours.gradients()[name], gradient) < 3e-6


def test_masked_positions_are_never_computed():
    """Hidden states there may be anything: they reach neither loss nor gradients."""
    batch = uneven_batch()
    clean, spoilt = Embedding(), Embedding()
    spoilt.masked = torch.from_numpy(~batch.valid_BS)
    assert step(spoilt, batch, B) == step(clean, batch, B)
    for name, gradient in clean.gradients().items():
        assert torch.equal(spoilt.gradients()[name], gradient)


def test_masked_positions_cost_nothing():
    """The objective is given only the rows of valid positions."""
    batch, given = uneven_batch(), []
    student: Any = Embedding()
    at_valid_positions(student, batch, CPU, lambda *rows: given.append([*map(len, rows[::2])]))
    assert given == [[batch.num_valid, batch.num_valid]]
    assert 0 < batch.num_valid < B * S


def test_a_micro_batch_without_a_valid_position_has_zero_gradients_for_every_parameter():
    """A rank may have none, but has to take part in the step."""
    empty = uneven_batch().micro_batches(8)[1]
    assert empty.num_valid == 0
    student: Any = Embedding()
    loss = at_valid_positions(student, empty, CPU, loss_of(empty, 90, Objective(0.4, 2.0)))
    assert loss.total.item() == loss.kd_sum.item() == loss.ce_sum.item() == 0
    loss.total.backward()
    for name, parameter in student.named_parameters():
        assert torch.equal(student.gradients()[name], torch.zeros_like(parameter))
