"""The training loop: what a step computes, and what an evaluation.

Oracle: a plain PyTorch loop over the model's own logits, with torch's losses.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lectern_common.errors import InvalidRequest
from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch, batch_of
from student_trainer.data.rows import ShuffledBatches, held_out, in_order
from student_trainer.objective.loss import Objective
from student_trainer.run.loop import train
from student_trainer.run.parts import Progress, Teaching
from student_trainer.student.student import CausalStudent
from student_trainer.targets import IGNORE_INDEX, TeacherTargets
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

# ---- what a step computes ----------------------------------------------------------------------


def plain_loop(
    student: CausalStudent, teacher_model: Any, batches: list[Batch], rates: Sequence[float]
) -> list[dict[str, float]]:
    """The same training without our code: alpha 0.3, T 2, decay 0.1, clipped to 0.5."""
    model = student.model.train()
    decaying = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    lines = []
    for batch, rate in zip(batches, rates, strict=True):
        inputs, labels = torch.from_numpy(batch.inputs_BS), torch.from_numpy(batch.labels_BS)
        logits = model(input_ids=inputs).logits
        with torch.no_grad():
            theirs = teacher_model(input_ids=inputs).logits
        ce = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        kd = F.kl_div(
            F.log_softmax(logits.flatten(0, 1) / 2, -1),
            F.log_softmax(theirs.flatten(0, 1) / 2, -1),
            reduction="batchmean",
            log_target=True,
        )
        total = 0.3 * ce + 0.7 * 4 * kd
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        lines.append(
            {
                "loss/ce": ce.item(),
                "loss/kd": kd.item(),
                "loss/total": total.item(),
                "optim/grad_norm": norm.item(),
                "optim/learning_rate": rate,
            }
        )
    return lines


def test_training_equals_a_plain_loop_over_the_models_own_logits(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    ours, plain = student, twin(student)
    batches = [ShuffledBatches(cyclic_rows(), 4, seed=0).batch_at(step) for step in range(6)]
    rates = [0.002 * (step + 1) for step in range(6)]
    expected = plain_loop(plain, teacher._model, batches, rates)
    settings = settings_of(
        6,
        objective=KD,
        max_grad_norm=0.5,
        micro_batch_sequences=2,
        learning_rate=lambda step: rates[step],
    )
    records = trained(parts_of(ours, teacher=teacher, validation=None), settings)
    assert len(records.lines) == 6
    for line, other in zip(records.lines, expected, strict=True):
        for key, value in other.items():
            assert line[key] == pytest.approx(value, rel=2e-5), (line["step"], key)
    for (name, value), other_value in zip(
        ours.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other_value, atol=2e-5, rtol=2e-4, msg=name)


@pytest.mark.parametrize("objective", [KD, Objective(alpha=1.0, temperature=1.0)])
def test_micro_batches_change_nothing(
    student: CausalStudent, teacher: InProcessTeacher, objective: Objective
) -> None:
    """One row at a time or all at once: within 1e-6, also with uneven valid positions."""
    batch = ShuffledBatches(cyclic_rows(), 4, seed=0).batch_at(0)
    labels = batch.labels_BS.copy()
    labels[0, 1:] = IGNORE_INDEX
    labels[1, 5:] = IGNORE_INDEX
    labels[3] = IGNORE_INDEX
    batches = Fixed(Batch(batch.inputs_BS, labels))
    students, lines = [], []
    for sequences in (4, 2, 1):
        learner = twin(student)
        parts = parts_of(
            learner,
            teacher=teacher if objective.alpha < 1 else None,
            batches=batches,
            validation=None,
        )
        settings = settings_of(3, objective=objective, micro_batch_sequences=sequences, rate=1e-3)
        lines.append(trained(parts, settings).lines)
        students.append(learner)
    for sizes in (1, 2):
        for ours, whole in zip(lines[sizes], lines[0], strict=True):
            assert ours["loss/total"] == pytest.approx(whole["loss/total"], abs=1e-6)
        for value, other in zip(
            students[sizes].parameters(), students[0].parameters(), strict=True
        ):
            torch.testing.assert_close(value, other, atol=1e-6, rtol=0)


def test_ignored_positions_have_no_effect(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """Rows whose tails are ignored train exactly as rows that end there."""
    rows = cyclic_rows(seq_len=12)
    long = batch_of([rows.row(index) for index in range(4)])
    labels = long.labels_BS.copy()
    labels[:, 7:] = IGNORE_INDEX
    inputs = long.inputs_BS.copy()
    inputs[:, 7:] = 0  # these values do not matter
    short = Batch(long.inputs_BS[:, :7], long.labels_BS[:, :7])
    lines, students = [], []
    for batch in (short, Batch(inputs, labels)):
        learner = twin(student)
        parts = parts_of(learner, teacher=teacher, batches=Fixed(batch), validation=None)
        lines.append(trained(parts, settings_of(3, objective=KD, rate=1e-3)).lines)
        students.append(learner)
    for ours, other in zip(*lines, strict=True):
        for key in ("loss/ce", "loss/kd", "loss/total", "optim/grad_norm"):
            assert ours[key] == pytest.approx(other[key], rel=1e-5), key
    for value, other_value in zip(*(s.parameters() for s in students), strict=True):
        torch.testing.assert_close(value, other_value, atol=1e-6, rtol=0)


class Listening:
    """Forwards requests, and keeps them."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher
        self.asked: list[list[np.ndarray]] = []

    def score(
        self, sequences: Any, positions: Any, representation: Any, temperature: float
    ) -> TeacherTargets:
        self.asked.append(list(positions))
        targets: TeacherTargets = self._teacher.score(
            sequences, positions, representation, temperature
        )
        return targets


def test_the_teacher_is_not_asked_about_ignored_positions(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    batch = ShuffledBatches(cyclic_rows(), 4, seed=0).batch_at(0)
    labels = batch.labels_BS.copy()
    labels[0, :6] = IGNORE_INDEX
    labels[2] = IGNORE_INDEX
    listening = Listening(teacher)
    parts = parts_of(
        student, teacher=listening, batches=Fixed(Batch(batch.inputs_BS, labels)), validation=None
    )
    trained(parts, settings_of(1, objective=KD, micro_batch_sequences=1))
    # The third micro-batch has no valid position: nothing is asked.
    assert [positions[0].tolist() for positions in listening.asked] == [
        [False] * 6 + [True] * 2,
        [True] * 8,
        [True] * 8,
    ]


def test_rows_without_any_valid_position_are_refused(student: CausalStudent) -> None:
    batch = ShuffledBatches(cyclic_rows(), 4, seed=0).batch_at(0)
    nothing = Batch(batch.inputs_BS, np.full_like(batch.labels_BS, IGNORE_INDEX))
    parts = parts_of(student, batches=Fixed(nothing), validation=None)
    with pytest.raises(InvalidRequest, match="step 0 have no valid position"):
        train(parts, settings_of(1), Progress())


@pytest.mark.parametrize("kind", ["dense", "hidden", "top_k", "sampled"])
def test_distillation_lowers_the_loss(
    student: CausalStudent, teacher: InProcessTeacher, kind: str
) -> None:
    """F-DISTILL-KD-001: the loss at step 100 is below the loss at step 0, on the same batch."""
    batch = ShuffledBatches(cyclic_rows(), 4, seed=0).batch_at(0)
    parts = parts_of(
        student,
        teacher=teacher,
        kind=kind,
        top_k=8 if kind == "top_k" else None,
        num_draws=50 if kind == "sampled" else None,
        batches=Fixed(batch),
        validation=None,
    )
    settings = settings_of(101, objective=Objective(alpha=0.0, temperature=2.0), rate=5e-3)
    losses = trained(parts, settings).curve("loss/kd")
    assert len(losses) == 101
    assert losses[100] < 0.5 * losses[0]


def test_the_students_logits_approach_the_teachers(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """F-DISTILL-KD-002: the mean cosine of their logits on held-out rows rises throughout."""
    training, held = held_out(cyclic_rows(), 0.2)
    sequences = [row.tolist() for row in next(in_order(held, len(held))).inputs_BS]
    theirs = np.concatenate(teacher.logits_per_position(sequences))

    def cosine() -> float:
        ours = np.concatenate(student.logits_per_position(sequences))
        products = (ours * theirs).sum(-1)
        norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        return float((products / norms).mean())

    parts = parts_of(
        student,
        teacher=teacher,
        batches=ShuffledBatches(training, 4, seed=0),
        validation=None,
    )
    objective, progress = Objective(alpha=0.0, temperature=2.0), Progress()
    cosines = [cosine()]
    for steps in (25, 50, 100):
        trained(parts, settings_of(steps, objective=objective, rate=5e-3), progress)
        cosines.append(cosine())
    assert cosines == sorted(cosines)
    assert cosines[-1] > cosines[0] + 0.2


@pytest.mark.long
def test_five_hundred_steps_lower_the_validation_loss(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """F-DISTILL-SMOKE-001: the loss on held-out rows is lower at step 500 than at step 0."""
    training, held = held_out(cyclic_rows(), 0.2)
    parts = parts_of(
        student,
        teacher=teacher,
        batches=ShuffledBatches(training, 4, seed=0),
        validation=lambda: in_order(held, 4),
    )
    settings = settings_of(500, objective=KD, rate=3e-3, evaluate_every=500)
    first, last = trained(parts, settings).curve("loss/val")
    assert last < first - 0.3


@pytest.mark.long
def test_hidden_and_dense_give_one_loss_curve(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """fp32: within 1e-5 at the first step, within 1e-3 at every one of 200."""
    curves = []
    for kind in ("dense", "hidden"):
        parts = parts_of(twin(student), teacher=teacher, kind=kind, validation=None)
        settings = settings_of(200, objective=KD, rate=3e-3)
        curves.append(trained(parts, settings).curve("loss/total"))
    dense, hidden = np.array(curves)
    assert abs(dense[0] - hidden[0]) <= 1e-5
    assert np.abs(dense - hidden).max() <= 1e-3
    assert dense[-1] < dense[0]


def test_epochs_are_counted_if_their_length_is_known(student: CausalStudent) -> None:
    parts = parts_of(student, validation=None, steps_per_epoch=2.5)
    assert trained(parts, settings_of(5)).curve("data/epoch") == [0.4, 0.8, 1.2, 1.6, 2.0]


def test_terms_of_weight_zero_are_not_recorded(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    only_ce = trained(parts_of(twin(student), validation=None), settings_of(1)).lines[0]
    assert "loss/kd" not in only_ce
    assert only_ce["loss/total"] == only_ce["loss/ce"]
    only_kd = trained(
        parts_of(student, teacher=teacher, validation=None),
        settings_of(1, objective=Objective(alpha=0.0, temperature=3.0)),
    ).lines[0]
    assert "loss/ce" not in only_kd
    assert only_kd["loss/total"] == pytest.approx(9 * only_kd["loss/kd"])


def test_every_step_has_its_metrics(student: CausalStudent, teacher: InProcessTeacher) -> None:
    received = iter([(700, 32), (0, 0), (350, 16)])
    teaching = Teaching(teacher, Representation("dense"), take_received=lambda: next(received))
    parts = parts_of(student, validation=None, teaching=teaching)
    lines = trained(parts, settings_of(3, objective=KD)).lines
    assert [line["step"] for line in lines] == [1, 2, 3]
    for index, line in enumerate(lines):
        assert {
            "loss/total",
            "loss/ce",
            "loss/kd",
            "optim/learning_rate",
            "optim/grad_norm",
            "optim/skipped_steps",
            "data/tokens_seen",
            "time",
            "progress/tokens",
            "progress/seconds",
            "perf/tokens_per_second",
            "data/valid_tokens",
            "memory/rss_bytes",
            "time/step_seconds",
            "time/teacher_wait_seconds",
            "time/teacher_wait_share",
            "wire/received_bytes",
            "wire/positions",
        } <= line.keys()
        assert line["data/tokens_seen"] == line["progress/tokens"] == 32 * (index + 1)
        assert line["time"] > 1e9
        assert line["progress/seconds"] > 0
        assert 0 <= line["time/teacher_wait_seconds"] <= line["time/step_seconds"]
        share = line["time/teacher_wait_seconds"] / line["time/step_seconds"]
        assert line["time/teacher_wait_share"] == share
        assert line["data/valid_tokens"] == 32
        assert line["memory/rss_bytes"] > 1 << 26
    assert [line["wire/received_bytes"] for line in lines] == [700, 0, 350]
    assert lines[0]["wire/bytes_per_token"] == 700 / 32
    assert "wire/bytes_per_token" not in lines[1]


@pytest.mark.parametrize("prefetch_steps", [1, 4])
def test_prefetching_changes_no_bit(
    student: CausalStudent, teacher: InProcessTeacher, prefetch_steps: int
) -> None:
    learners = [twin(student), twin(student)]
    lines = []
    for learner, ahead in zip(learners, (0, prefetch_steps), strict=True):
        parts = parts_of(learner, teacher=teacher, prefetch_steps=ahead, validation=None)
        settings = settings_of(8, objective=KD, micro_batch_sequences=2)
        lines.append(trained(parts, settings).curve("loss/total"))
    assert lines[0] == lines[1]
    assert same(*learners)


# ---- evaluation --------------------------------------------------------------------------------


def test_evaluations_are_made_first_periodically_and_last(student: CausalStudent) -> None:
    records = trained(parts_of(student), settings_of(7, evaluate_every=3))
    assert [line["step"] for line in records.lines] == list(range(8))
    assert [line["step"] for line in records.lines if "loss/val" in line] == [0, 3, 6, 7]
    assert records.curve("loss/val")[-1] < records.curve("loss/val")[0]


def test_wall_seconds_cover_steps_and_evaluations(student: CausalStudent) -> None:
    """All are measured with monotonic clocks, so none is negative."""
    progress = Progress(wall_seconds=100.0)
    records = trained(parts_of(student), settings_of(4, evaluate_every=2), progress)
    parts = [*records.curve("time/step_seconds"), *records.curve("time/evaluation_seconds")]
    assert len(parts) == 4 + 3
    assert min(parts) > 0
    assert progress.wall_seconds >= 100 + sum(parts)


def test_validation_loss_is_the_models_own_cross_entropy(student: CausalStudent) -> None:
    records = trained(parts_of(student), settings_of(1))
    rows = [cyclic_rows(6).row(index).astype(np.int64) for index in range(6)]
    tokens = torch.from_numpy(np.stack(rows))
    with torch.no_grad():
        logits = student.model.eval()(input_ids=tokens[:, :-1]).logits
        expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert records.curve("loss/val")[-1] == pytest.approx(expected.item(), rel=1e-6)
