"""Validation loss against torch's cross entropy over the model's own logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lectern_common.errors import InvalidRequest
from student_trainer.batch_sources import Batch
from student_trainer.datasets import in_order
from student_trainer.evaluation import validation_loss
from student_trainer.stopping import Stop, StopRequested
from student_trainer.students import CausalStudent
from student_trainer.targets import IGNORE_INDEX
from tests.student_trainer.parts import CPU, cyclic_rows, tiny_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CausalStudent:
    return tiny_student(tmp_path_factory.mktemp("student"), attention_dropout=0.3)


def masked_batches() -> list[Batch]:
    batches = list(in_order(cyclic_rows(7), 3))
    draw = np.random.default_rng(3)
    return [
        Batch(
            batch.inputs_BS,
            np.where(draw.random(batch.labels_BS.shape) < 0.3, IGNORE_INDEX, batch.labels_BS),
        )
        for batch in batches
    ]


def test_it_is_the_mean_over_all_valid_positions(student: CausalStudent) -> None:
    """Not the mean of the batches' means: they differ in valid positions, the last in rows."""
    batches = masked_batches()
    with torch.no_grad():
        model = student.model.eval()
        logits = [
            model(input_ids=torch.from_numpy(b.inputs_BS)).logits.flatten(0, 1) for b in batches
        ]
    labels = [torch.from_numpy(batch.labels_BS).flatten() for batch in batches]
    expected = F.cross_entropy(torch.cat(logits).double(), torch.cat(labels), ignore_index=-100)
    loss = validation_loss(student, batches, CPU, Stop())
    assert loss == pytest.approx(expected.item(), rel=1e-6)


def test_micro_batches_change_nothing(student: CausalStudent) -> None:
    losses = [
        validation_loss(student, in_order(cyclic_rows(7), size), CPU, Stop()) for size in (1, 3, 7)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_off_and_the_mode_is_kept(student: CausalStudent, training: bool) -> None:
    student.train(training)
    once, twice = (validation_loss(student, masked_batches(), CPU, Stop()) for _ in range(2))
    assert once == twice
    assert student.training is training


def test_no_gradient_is_left(student: CausalStudent) -> None:
    student.zero_grad(set_to_none=True)
    validation_loss(student, masked_batches(), CPU, Stop())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_stop_ends_it_between_batches(student: CausalStudent) -> None:
    stop = Stop()
    stop.request()
    student.train()
    with pytest.raises(StopRequested):
        validation_loss(student, masked_batches(), CPU, stop)
    assert student.training


def test_nothing_to_evaluate_is_an_error(student: CausalStudent) -> None:
    with pytest.raises(InvalidRequest):
        validation_loss(student, [], CPU, Stop())
