"""A student that already matches the teacher's distribution is refused before any update."""

import numpy as np
import pytest

from lectern_common.errors import SameWeights
from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch
from student_trainer.data.rows import ShuffledBatches
from student_trainer.objective.loss import Objective
from student_trainer.run.checks import SAME_DISTRIBUTION_NATS
from student_trainer.run.loop import train
from student_trainer.run.parts import Progress, Teaching
from student_trainer.student.student import CausalStudent
from student_trainer.targets import IGNORE_INDEX
from student_trainer.teacher.local import InProcessTeacher
from tests.support.training.parts import (
    KD,
    Fixed,
    cyclic_rows,
    parts_of,
    same,
    settings_of,
    trained,
    twin,
)


def test_a_student_equal_to_the_teacher_is_refused_before_any_update(
    student: CausalStudent,
) -> None:
    """TEACHER-DIVERGENCE: found by its distribution, whatever its files hash to."""
    before, same_teacher = twin(student), InProcessTeacher(twin(student).model)
    parts = parts_of(student, teacher=same_teacher, validation=None)
    with pytest.raises(SameWeights, match="already matches the teacher's distribution"):
        train(parts, settings_of(3, objective=KD), Progress())
    assert same(student, before)


def test_a_student_equal_to_the_teacher_is_refused_with_draws_too(student: CausalStudent) -> None:
    same_teacher = InProcessTeacher(twin(student).model)
    parts = parts_of(student, teacher=same_teacher, kind="sampled", num_draws=5, validation=None)
    with pytest.raises(SameWeights, match="already matches the teacher's distribution"):
        train(parts, settings_of(3, objective=KD), Progress())


def test_an_estimate_below_zero_does_not_count_as_equal(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """One draw at few positions says little: some seed gives a negative estimate."""
    batch = ShuffledBatches(cyclic_rows(), 1, seed=0).batch_at(0)
    labels = np.full_like(batch.labels_BS, IGNORE_INDEX)
    labels[0, :2] = batch.labels_BS[0, :2]
    few = Batch(batch.inputs_BS, labels)
    estimates = []
    for seed in range(8):
        parts = parts_of(
            twin(student),
            teacher=teacher,
            kind="sampled",
            num_draws=1,
            batches=Fixed(few),
            validation=None,
        )
        settings = settings_of(1, objective=KD, seed=seed)
        estimates += trained(parts, settings).curve("loss/kd")
    assert min(estimates) < 0 < max(estimates)


def test_a_different_teacher_at_a_high_temperature_does_not_count_as_equal(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    parts = parts_of(student, teacher=teacher, validation=None)
    hot = Objective(alpha=0.0, temperature=1000.0)
    [kd] = trained(parts, settings_of(1, objective=hot)).curve("loss/kd")
    assert 0 < kd < SAME_DISTRIBUTION_NATS


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_a_jsd_with_extreme_beta_still_tells_equal_from_different(
    student: CausalStudent, teacher: InProcessTeacher, beta: float
) -> None:
    """TEACHER-DIVERGENCE."""
    edge = Objective(alpha=0.0, temperature=1.0, divergence="jsd", beta=beta)
    same_teacher = InProcessTeacher(twin(student).model)
    parts = parts_of(twin(student), teacher=teacher, validation=None)
    [kd] = trained(parts, settings_of(1, objective=edge)).curve("loss/kd")
    assert abs(kd) < SAME_DISTRIBUTION_NATS
    with pytest.raises(SameWeights, match="already matches the teacher's distribution"):
        train(
            parts_of(student, teacher=same_teacher, validation=None),
            settings_of(1, objective=edge),
            Progress(),
        )


def test_the_teachers_own_weights_are_allowed_on_request(student: CausalStudent) -> None:
    """TEACHER-DIVERGENCE."""
    teaching = Teaching(
        InProcessTeacher(twin(student).model), Representation("dense"), allow_same_weights=True
    )
    parts = parts_of(student, teaching=teaching, validation=None)
    records = trained(parts, settings_of(2, objective=KD))
    assert records.lines[0]["loss/kd"] <= 1e-5


def test_a_student_that_has_come_to_equal_its_teacher_continues(student: CausalStudent) -> None:
    parts = parts_of(student, teacher=InProcessTeacher(twin(student).model), validation=None)
    assert train(parts, settings_of(6, objective=KD), Progress(step=5))
