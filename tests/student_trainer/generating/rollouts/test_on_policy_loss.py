"""For fixed rollouts, loss and gradients are those of the float64 reference."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch
from student_trainer.generating.rollouts.metrics import BUCKETS, LearntBatch, rollout_metrics
from student_trainer.generating.rollouts.plan import Slot
from student_trainer.generating.rollouts.rows import Rollout, WrittenBatch, batch_of_rollouts
from student_trainer.generating.rollouts.writing import WrittenBy
from student_trainer.objective.loss import Objective
from student_trainer.objective.reference import kd_logit_gradient, kd_loss
from student_trainer.ranks.world import Ranks
from student_trainer.run.loop import _Learnt, _micro_step
from student_trainer.run.metrics import loss_metrics
from student_trainer.student.forward import ask
from student_trainer.student.student import CausalStudent
from student_trainer.teacher.local import InProcessTeacher
from student_trainer.teacher.prefetch import MicroBatch
from tests.support.training.parts import parts_of, tiny_student, tiny_teacher

# The row's limits of docs/measured.md, relative to the largest gradient.
LIMIT = {"float32": 2e-5, "bfloat16": 2e-2}
ROLLOUTS = [
    Rollout(Slot(0, 0, 0, 0), np.array([3, 9, 27], np.uint32), [1, 14, 2, 39, 6], 5),
    Rollout(Slot(0, 1, 1, 0), np.array([3, 9, 27], np.uint32), [8], None),
    Rollout(Slot(0, 3, 0, 1), np.array([30], np.uint32), [], 5),
    Rollout(Slot(0, 4, 0, 2), np.array([11, 12], np.uint32), [7] * 9, 5),
]
DIVERGENCES = [
    ("forward_kl", None, 1.0),
    ("forward_kl", None, 2.5),
    ("reverse_kl", None, 1.0),
    ("reverse_kl", None, 0.7),
    ("jsd", 0.5, 1.0),
    ("jsd", 0.1, 2.0),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalStudent, InProcessTeacher]:
    folder = tmp_path_factory.mktemp("models")
    return tiny_student(folder / "student"), tiny_teacher(folder / "teacher")


def data() -> Batch:
    tokens = np.random.default_rng(3).integers(0, 40, (3, 9))
    return Batch(tokens[:, :-1], tokens[:, 1:])


def learnt_by(
    student: CausalStudent,
    teacher: InProcessTeacher,
    objective: Objective,
    kind: str,
    *,
    with_data: bool,
) -> tuple[list[_Learnt], int]:
    """Returns the micro-batches after their backward pass, and the positions of the step."""
    parts: Any = parts_of(student, teacher=teacher, kind=kind)
    asked = Representation(kind)
    batches: list[MicroBatch] = []
    if with_data:
        batches.append(
            MicroBatch(data(), lambda: ask(teacher, data(), asked, objective.temperature))
        )
    for part in (ROLLOUTS[:2], ROLLOUTS[2:]):
        batch = batch_of_rollouts(part)
        answer = partial(ask, teacher, batch, asked, objective.temperature)
        batches.append(WrittenBatch(batch, answer, part))
    positions = sum(part.batch.num_valid for part in batches)
    return [_micro_step(parts, part, objective, positions) for part in batches], positions


def reference(
    student: CausalStudent, teacher: InProcessTeacher, objective: Objective, *, with_data: bool
) -> tuple[float, dict[str, torch.Tensor]]:
    """Returns total loss and gradients in float64, a position at a time, without padding."""
    exact = copy.deepcopy(student.model).double()
    exact.zero_grad()
    rows = [
        ([*one.prompt_ids.tolist(), *one.completion], len(one.prompt_ids) - 1, 0.0)
        for one in ROLLOUTS
    ]
    if with_data:
        tokens = np.concatenate([data().inputs_BS, data().labels_BS[:, -1:]], 1)
        rows += [(row, 0, objective.alpha) for row in tokens.tolist()]
    positions, total = sum(len(ids) - 1 - first for ids, first, _ in rows), 0.0
    teaching = copy.deepcopy(teacher._model).double()
    for ids, first, alpha in rows:
        logits_SV = exact(torch.tensor([ids[:-1]])).logits[0]
        theirs_SV = teaching(torch.tensor([ids[:-1]])).logits[0].numpy()
        upstream_SV = torch.zeros_like(logits_SV)
        for place in range(first, len(ids) - 1):
            arguments = (
                logits_SV[place].detach().numpy(),
                theirs_SV[place],
                ids[place + 1],
                objective.temperature,
                alpha,
                objective.divergence,
                objective.beta,
            )
            total += kd_loss(*arguments) / positions
            upstream_SV[place] = torch.from_numpy(kd_logit_gradient(*arguments)) / positions
        logits_SV.backward(upstream_SV)
    return total, {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("divergence", "beta", "temperature"), DIVERGENCES)
@pytest.mark.parametrize("kind", ["hidden", "dense"])
@pytest.mark.parametrize("with_data", [False, True], ids=["all written", "with data"])
def test_loss_and_gradients_are_the_references(
    models: tuple[CausalStudent, InProcessTeacher],
    divergence: str,
    beta: float | None,
    temperature: float,
    kind: str,
    with_data: bool,
) -> None:
    student, teacher = models
    objective = Objective(0.3 if with_data else 0.0, temperature, divergence, beta)
    student.zero_grad()
    learnt, positions = learnt_by(student, teacher, objective, kind, with_data=with_data)
    metrics = loss_metrics(learnt, objective, positions, Ranks())
    total, expected = reference(student, teacher, objective, with_data=with_data)
    assert metrics["loss/total"] == pytest.approx(total, rel=1e-6)
    largest = max(float(grad.abs().max()) for grad in expected.values())
    for name, parameter in student.model.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - expected[name]).abs().max()
        assert difference <= LIMIT["float32"] * largest, name


@pytest.mark.parametrize(("divergence", "beta", "temperature"), DIVERGENCES[::2])
def test_a_bfloat16_student_is_within_its_limit(
    models: tuple[CausalStudent, InProcessTeacher],
    divergence: str,
    beta: float | None,
    temperature: float,
) -> None:
    student, teacher = models
    narrow = CausalStudent(copy.deepcopy(student.model), torch.bfloat16)
    narrow.zero_grad()
    objective = Objective(0.0, temperature, divergence, beta)
    learnt, positions = learnt_by(narrow, teacher, objective, "hidden", with_data=False)
    total, _ = reference(student, teacher, objective, with_data=False)
    metrics = loss_metrics(learnt, objective, positions, Ranks())
    assert metrics["loss/total"] == pytest.approx(total, rel=LIMIT["bfloat16"])


def test_metrics_are_means_over_what_they_name(
    models: tuple[CausalStudent, InProcessTeacher],
) -> None:
    student, teacher = models
    objective = Objective(0.3, 1.0, "reverse_kl")
    student.zero_grad()
    learnt, positions = learnt_by(student, teacher, objective, "hidden", with_data=True)
    losses = loss_metrics(learnt, objective, positions, Ranks())
    assert positions == 24 + 6 + 1 + 1 + 10
    ce = float(learnt[0].loss.ce_sum)
    kd = [float(one.loss.kd_sum) for one in learnt]
    assert losses["loss/ce"] == pytest.approx(ce / 24)
    assert losses["loss/kd"] == pytest.approx(sum(kd) / positions)
    assert losses["loss/total"] == pytest.approx(
        (0.3 * ce + 0.7 * kd[0] + kd[1] + kd[2]) / positions
    )
    batches = [
        LearntBatch(part, loss.kd_N, sums)
        for part, loss, sums in learnt
        if isinstance(part, WrittenBatch) and sums is not None
    ]
    found = rollout_metrics(batches, WrittenBy(4, 18, 0.5), 2.0, 0.25, Ranks())
    assert found["rollout/rows"] == 4
    assert found["rollout/mean_length"] == 18 / 4
    assert found["rollout/finished_share"] == 3 / 4
    assert found["rollout/kd"] == pytest.approx((kd[1] + kd[2]) / 18)
    assert found["rollout/kd_0_16"] == found["rollout/kd"]
    assert not any(f"rollout/kd_{begin}_" in key for key in found for begin in BUCKETS[1:])
    # Five tokens have two 4-grams, both different; nine equal ones have one of six.
    assert found["rollout/distinct_4"] == pytest.approx((1 + 1 / 6) / 2)
    assert found["rollout/tokens_per_second"] == 36
    assert found["rollout/writing_share"] == 0.25
    assert found["rollout/scoring_share"] == 0.125
    assert found["rollout/learning_share"] == 0.625
    logits = [
        student.logits_per_position([[*one.prompt_ids.tolist(), *one.completion][:-1]])[0][
            len(one.prompt_ids) - 1 :
        ]
        for one in ROLLOUTS
    ]
    log_q = torch.from_numpy(np.concatenate(logits)).double().log_softmax(-1)
    entropy = -(log_q.exp() * log_q).sum(-1).mean()
    assert found["rollout/entropy"] == pytest.approx(float(entropy), rel=1e-5)
    theirs = [
        teacher.logits_per_position([[*one.prompt_ids.tolist(), *one.completion][:-1]])[0][
            len(one.prompt_ids) - 1 :
        ]
        for one in ROLLOUTS
    ]
    same = np.concatenate(theirs).argmax(-1) == np.concatenate(logits).argmax(-1)
    assert found["rollout/agreement"] == pytest.approx(same.mean())


def test_a_step_without_rollouts_has_no_means_of_them() -> None:
    found = rollout_metrics([], WrittenBy(), 2.0, 0.0, Ranks())
    assert found["rollout/rows"] == found["rollout/seconds"] == 0
    assert set(found) == {
        "rollout/rows",
        "rollout/seconds",
        "rollout/writing_share",
        "rollout/scoring_share",
        "rollout/learning_share",
    }


def test_the_divergence_is_counted_by_position() -> None:
    long = Rollout(Slot(0, 0, 0, 0), np.array([1], np.uint32), list(range(40)) * 8, None)
    kd_N = torch.arange(320).float()
    batch = WrittenBatch(batch_of_rollouts([long]), None, [long])
    learnt = LearntBatch(batch, kd_N, torch.zeros(4, dtype=torch.float64))
    found = rollout_metrics([learnt], WrittenBy(1, 320, 1.0), 2.0, 0.0, Ranks())
    assert found["rollout/kd_0_16"] == np.arange(16).mean()
    assert found["rollout/kd_16_64"] == np.arange(16, 64).mean()
    assert found["rollout/kd_64_256"] == np.arange(64, 256).mean()
    assert found["rollout/kd_256_up"] == np.arange(256, 320).mean()
    assert found["rollout/distinct_4"] == 40 / 317
