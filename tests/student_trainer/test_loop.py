"""The training loop: what a step computes, when it evaluates and saves, how it ends.

Oracle: a plain PyTorch loop over the model's own logits, with torch's losses.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lectern_common.errors import (
    DiskFull,
    Diverged,
    InvalidRequest,
    LecternError,
    SameWeights,
    TeacherError,
    TeacherUnavailable,
)
from student_trainer.advice import TeacherBound, TeacherFacts, WaitAdvice
from student_trainer.batch_sources import Batch, batch_of
from student_trainer.checkpoint import CheckpointStore
from student_trainer.datasets import ShuffledBatches, held_out, in_order
from student_trainer.loop import train
from student_trainer.objective import Objective
from student_trainer.ranks import Ranks
from student_trainer.run_parts import Parts, Progress, Teaching
from student_trainer.same_distribution import SAME_DISTRIBUTION_NATS
from student_trainer.stopping import Stop, StopRequested
from student_trainer.students import CausalStudent
from student_trainer.targets import IGNORE_INDEX, DenseTargets, Representation, TeacherTargets
from student_trainer.teachers import InProcessTeacher
from student_trainer.training_state import load_model_tensors, load_optimizer_tensors
from tests.student_trainer.parts import (
    VOCAB_SIZE,
    Fixed,
    Records,
    cyclic_rows,
    parts_of,
    same,
    settings_of,
    tiny_student,
    tiny_teacher,
    trained,
    twin,
)

KD = Objective(alpha=0.3, temperature=2.0)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> CausalStudent:
    return tiny_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def student(untouched: CausalStudent) -> CausalStudent:
    return twin(untouched)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> InProcessTeacher:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))


# ---- what a step computes ----------------------------------------------------------------------


def plain_loop(
    student: CausalStudent, teacher_model: Any, batches: list[Batch], rates: Sequence[float]
) -> list[dict[str, float]]:
    """The same training with nothing of ours: alpha 0.3, T 2, decay 0.1, clipped to 0.5."""
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
    """One row at a time or all at once: 1e-6, with unequal numbers of valid positions too."""
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


def test_ignored_positions_take_part_in_nothing(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """Rows whose tails are ignored train exactly as rows that end there."""
    rows = cyclic_rows(seq_len=12)
    long = batch_of([rows.row(index) for index in range(4)])
    labels = long.labels_BS.copy()
    labels[:, 7:] = IGNORE_INDEX
    inputs = long.inputs_BS.copy()
    inputs[:, 7:] = 0  # what stands there is of no account
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
    """Passes questions on, and keeps them."""

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


def test_ignored_positions_are_not_asked_of_the_teacher(
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
    """F-DISTILL-KD-001: the loss at step 100 is below that at step 0, on the same batch."""
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


def test_the_students_logits_turn_towards_the_teachers(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """F-DISTILL-KD-002: the mean cosine of their logits on held-out rows rises all the way."""
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


def test_five_hundred_steps_lower_the_validation_loss(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """F-DISTILL-SMOKE-001: at step 500 below that at step 0, on rows that were held out."""
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


def test_hidden_gives_the_loss_curve_of_dense(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """fp32: 1e-5 at the first step, 1e-3 at every one of 200."""
    curves = []
    for kind in ("dense", "hidden"):
        parts = parts_of(twin(student), teacher=teacher, kind=kind, validation=None)
        settings = settings_of(200, objective=KD, rate=3e-3)
        curves.append(trained(parts, settings).curve("loss/total"))
    dense, hidden = np.array(curves)
    assert abs(dense[0] - hidden[0]) <= 1e-5
    assert np.abs(dense - hidden).max() <= 1e-3
    assert dense[-1] < dense[0]


def test_epochs_are_counted_where_their_length_is_known(student: CausalStudent) -> None:
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


def test_each_step_has_its_metrics(student: CausalStudent, teacher: InProcessTeacher) -> None:
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
            "perf/tokens_per_second",
            "data/valid_tokens",
            "memory/rss_bytes",
            "time/step_seconds",
            "time/teacher_wait_seconds",
            "time/teacher_wait_share",
            "wire/received_bytes",
            "wire/positions",
        } <= line.keys()
        assert line["data/tokens_seen"] == 32 * (index + 1)
        assert 0 <= line["time/teacher_wait_seconds"] <= line["time/step_seconds"]
        share = line["time/teacher_wait_seconds"] / line["time/step_seconds"]
        assert line["time/teacher_wait_share"] == share
        assert line["data/valid_tokens"] == 32
        assert line["memory/rss_bytes"] > 1 << 26
    assert [line["wire/received_bytes"] for line in lines] == [700, 0, 350]
    assert lines[0]["wire/bytes_per_token"] == 700 / 32
    assert "wire/bytes_per_token" not in lines[1]


@pytest.mark.parametrize("prefetch_steps", [1, 4])
def test_asking_ahead_changes_no_bit(
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


# ---- teacher and student the same ------------------------------------------------------------


def test_a_student_that_is_the_teacher_is_refused_before_any_update(student: CausalStudent) -> None:
    """TEACHER-DIVERGENCE: by what it computes, whatever its files hash to."""
    before, same_teacher = twin(student), InProcessTeacher(twin(student).model)
    parts = parts_of(student, teacher=same_teacher, validation=None)
    with pytest.raises(SameWeights, match="already gives the teacher's distribution"):
        train(parts, settings_of(3, objective=KD), Progress())
    assert same(student, before)


def test_a_student_that_is_the_teacher_is_refused_by_its_draws(student: CausalStudent) -> None:
    same_teacher = InProcessTeacher(twin(student).model)
    parts = parts_of(student, teacher=same_teacher, kind="sampled", num_draws=5, validation=None)
    with pytest.raises(SameWeights, match="already gives the teacher's distribution"):
        train(parts, settings_of(3, objective=KD), Progress())


def test_an_estimate_below_zero_is_no_equal_teacher(
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


def test_another_teacher_is_not_taken_for_the_student_at_a_high_temperature(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    parts = parts_of(student, teacher=teacher, validation=None)
    hot = Objective(alpha=0.0, temperature=1000.0)
    [kd] = trained(parts, settings_of(1, objective=hot)).curve("loss/kd")
    assert 0 < kd < SAME_DISTRIBUTION_NATS


@pytest.mark.parametrize("beta", [1e-6, 1 - 1e-6])
def test_a_jsd_at_the_edge_is_tiny_between_any_two_and_tells_equal_ones_all_the_same(
    student: CausalStudent, teacher: InProcessTeacher, beta: float
) -> None:
    """TEACHER-DIVERGENCE."""
    edge = Objective(alpha=0.0, temperature=1.0, divergence="jsd", beta=beta)
    same_teacher = InProcessTeacher(twin(student).model)
    parts = parts_of(twin(student), teacher=teacher, validation=None)
    [kd] = trained(parts, settings_of(1, objective=edge)).curve("loss/kd")
    assert abs(kd) < SAME_DISTRIBUTION_NATS
    with pytest.raises(SameWeights, match="already gives the teacher's distribution"):
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


def test_a_student_that_came_to_equal_its_teacher_goes_on(student: CausalStudent) -> None:
    parts = parts_of(student, teacher=InProcessTeacher(twin(student).model), validation=None)
    assert train(parts, settings_of(6, objective=KD), Progress(step=5))


# ---- evaluation --------------------------------------------------------------------------------


def test_validation_comes_first_then_periodically_and_last(student: CausalStudent) -> None:
    records = trained(parts_of(student), settings_of(7, evaluate_every=3))
    assert [line["step"] for line in records.lines] == list(range(8))
    assert [line["step"] for line in records.lines if "loss/val" in line] == [0, 3, 6, 7]
    assert records.curve("loss/val")[-1] < records.curve("loss/val")[0]


def test_wall_seconds_are_those_of_steps_and_evaluations(student: CausalStudent) -> None:
    """All by clocks that never go back, so none is negative."""
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


# ---- what is not finite --------------------------------------------------------------------------


class NotFiniteAt:
    """A teacher of zeros, with NaN in the answers of given calls."""

    def __init__(self, *calls: int) -> None:
        self._calls = calls
        self._count = -1

    def score(
        self, sequences: Any, positions: Any, representation: Any, temperature: float
    ) -> TeacherTargets:
        self._count += 1
        logits = torch.zeros(sum(int(asked.sum()) for asked in positions), VOCAB_SIZE)
        logits[:, 3] = 5.0
        if self._count in self._calls:
            logits[1, 2] = math.nan
        return DenseTargets(logits)


def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(student: CausalStudent) -> None:
    parts = parts_of(student, teacher=NotFiniteAt(1), validation=None)
    progress = Progress()
    assert train(parts, settings_of(1, objective=KD), progress)
    before = twin(student)
    state = {key: value.clone() for key, value in optimizer_state(parts).items()}
    assert train(parts, settings_of(2, objective=KD), progress)
    assert same(student, before)
    for key, value in optimizer_state(parts).items():
        assert torch.equal(value, state[key])
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (1, 1)
    records = parts.recorder
    assert isinstance(records, Records)
    assert math.isnan(records.lines[-1]["loss/total"])
    assert records.events == [("step_skipped", {"step": 1, "in_a_row": 1})]
    assert train(parts, settings_of(3, objective=KD), progress)
    assert not same(student, before)
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (1, 0)


@pytest.mark.parametrize("divergence", [("forward_kl", None), ("jsd", 0.5)])
def test_a_first_step_that_is_not_finite_is_no_equal_teacher(
    student: CausalStudent, divergence: tuple[str, float | None]
) -> None:
    parts = parts_of(student, teacher=NotFiniteAt(0), validation=None)
    progress = Progress()
    objective = Objective(0.0, 2.0, *divergence)
    assert train(parts, settings_of(2, objective=objective), progress)
    assert (progress.step, progress.skipped_steps) == (2, 1)


class Agreeing(Ranks):
    """Keeps what ended it at places that all ranks come by."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Exception] = []

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except LecternError as error:
            self.heard.append(error)
            raise


@pytest.mark.parametrize("kind", ["step_skipped", "teacher_bound"])
def test_an_event_that_finds_no_room_ends_all_ranks_at_one_place(
    student: CausalStudent, teacher: InProcessTeacher, kind: str
) -> None:
    class Full(Records):
        def event(self, told: str, **details: Any) -> None:
            if told == kind:
                raise DiskFull("full")

    class Bound(WaitAdvice):
        def after(self, metrics: Mapping[str, float | None]) -> TeacherBound | None:
            return TeacherBound(1.0, "advice")

    ranks = Agreeing()
    answering = NotFiniteAt(0) if kind == "step_skipped" else teacher
    parts = parts_of(student, teacher=answering, validation=None, ranks=ranks, recorder=Full())
    if kind == "teacher_bound":
        assert parts.teaching is not None
        teaching = replace(parts.teaching, advice=Bound(TeacherFacts("dense", 0)))
        parts = replace(parts, teaching=teaching)
    with pytest.raises(DiskFull) as caught:
        train(parts, settings_of(3, objective=KD), Progress())
    assert ranks.heard == [caught.value]


def optimizer_state(parts: Parts) -> dict[str, Tensor]:
    return {
        f"{index}/{key}": value
        for index, state in enumerate(parts.optimizer.state.values())
        for key, value in state.items()
    }


def test_three_in_a_row_end_the_run_and_name_the_last_checkpoint(
    student: CausalStudent, tmp_path: Path
) -> None:
    parts = parts_of(
        student,
        teacher=NotFiniteAt(1, 2, 4, 5, 6, 7),
        validation=None,
        checkpoints=CheckpointStore(tmp_path, keep_last=1, keep_best=0),
    )
    progress = Progress()
    with pytest.raises(Diverged, match="the last of them step 6; the last checkpoint is of step 4"):
        train(parts, settings_of(20, objective=KD, checkpoint_every=4), progress)
    assert progress.skipped_steps == 5


def test_a_gradient_that_is_not_finite_is_skipped_too(student: CausalStudent) -> None:
    parts = parts_of(student, validation=None)
    weight = next(student.parameters())
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = twin(student)
    with pytest.raises(Diverged, match="there is no checkpoint"):
        train(parts, settings_of(9), Progress())
    assert same(student, before)


# ---- checkpoints, stopping, going on ----------------------------------------------------------


def test_checkpoints_are_saved_periodically_and_at_the_end(
    student: CausalStudent, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep_last=9, keep_best=0)
    parts = parts_of(student, checkpoints=store, checkpoint_facts={"note": "fact"})
    trained(parts, settings_of(7, checkpoint_every=3, evaluate_every=3))
    assert store.steps() == [3, 6, 7]
    newest = store.newest()
    assert newest is not None
    state = newest.state
    assert state["note"] == "fact"
    assert state["tokens_seen"] == 7 * 32
    assert state["wall_seconds"] > 0
    assert state["train_loss"] == state["total_loss"] == state["ce_loss"]
    assert state["kl_loss"] is None
    assert state["val_loss"] == pytest.approx(parts.recorder.curve("loss/val")[-1])  # type: ignore[attr-defined]
    assert len(state["optimizer_state_sha"]) == 64


def resumed(store: CheckpointStore, fresh: CausalStudent, **changes: Any) -> tuple[Parts, Progress]:
    """A new process's parts, from the newest checkpoint."""
    found = store.newest()
    assert found is not None
    parts = parts_of(fresh, checkpoints=store, **changes)
    load_model_tensors(fresh, found.model_tensors())
    load_optimizer_tensors(parts.optimizer, fresh, found.optimizer_tensors())
    return parts, Progress.of_state(found.state)


COMPARED = ("step", "loss/ce", "loss/kd", "loss/total", "loss/val", "optim/grad_norm")


def compared(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: line[key] for key in COMPARED if key in line} for line in lines]


class StoppingAt(Records):
    """Asks for a stop when a step is told."""

    def __init__(self, stop: Stop, step: int) -> None:
        super().__init__()
        self._stop, self._step = stop, step

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        super().record(step, metrics)
        if step == self._step:
            self._stop.request()


@pytest.mark.parametrize("stop_step", [0, 1, 4, 6])
@pytest.mark.parametrize(
    ("dropout", "asked"),
    [
        (0.0, {"kind": "dense"}),
        (0.2, {"kind": "dense"}),
        (0.0, {"kind": "sampled", "num_draws": 3}),
    ],
)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(
    tmp_path: Path,
    teacher: InProcessTeacher,
    stop_step: int,
    dropout: float,
    asked: dict[str, Any],
) -> None:
    first = tiny_student(tmp_path / "m", attention_dropout=dropout)
    straight, again = twin(first), twin(first)
    settings = settings_of(8, objective=KD, evaluate_every=4, micro_batch_sequences=2)
    undisturbed = trained(parts_of(straight, teacher=teacher, **asked), settings)

    stop = Stop()
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2, keep_best=0)
    recorder = StoppingAt(stop, stop_step)
    parts = parts_of(
        first, teacher=teacher, checkpoints=store, stop=stop, recorder=recorder, **asked
    )
    torch.manual_seed(1)  # the caller's random state is of no account
    assert not train(parts, settings, Progress())
    assert store.steps() == [stop_step]

    torch.manual_seed(2)
    parts, progress = resumed(store, again, teacher=teacher, **asked)
    after = trained(parts, settings, progress)
    assert same(again, straight)
    lines = compared(recorder.lines)[:stop_step] + compared(after.lines)
    assert lines == compared(undisturbed.lines)


def test_dropout_is_drawn_from_seed_and_step_alone(tmp_path: Path) -> None:
    first = tiny_student(tmp_path, attention_dropout=0.5)
    batch = ShuffledBatches(cyclic_rows(), 4, seed=0).batch_at(0)

    def losses(seed: int, callers: int) -> list[float]:
        torch.manual_seed(callers)
        parts = parts_of(twin(first), batches=Fixed(batch), validation=None)
        return trained(parts, settings_of(2, seed=seed, rate=0.0)).curve("loss/ce")

    once = losses(seed=0, callers=0)
    assert once == losses(seed=0, callers=1)
    assert once[0] != once[1]  # same rows, same weights, another step
    assert once[0] != losses(seed=1, callers=0)[0]


def test_the_callers_random_state_is_kept(student: CausalStudent) -> None:
    before = torch.random.get_rng_state()
    trained(parts_of(student), settings_of(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def stopped_in_evaluation(
    number: int, student: CausalStudent, *, stop: Stop, checkpoints: CheckpointStore
) -> Parts:
    """Parts of a twin whose stop is requested when the numbered evaluation (from 1) begins."""
    original = parts_of(student).validation
    assert original is not None
    evaluations = 0

    def stopping() -> Any:
        nonlocal evaluations
        evaluations += 1
        if evaluations == number:
            stop.request()
        return original()

    return parts_of(twin(student), checkpoints=checkpoints, stop=stop, validation=stopping)


def test_a_stop_within_an_evaluation_loses_no_point_of_the_curve(
    student: CausalStudent, tmp_path: Path
) -> None:
    settings = settings_of(6, evaluate_every=3)
    undisturbed = trained(parts_of(twin(student)), settings)
    stop, store = Stop(), CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    parts = stopped_in_evaluation(2, student, checkpoints=store, stop=stop)
    assert not train(parts, settings, Progress())
    assert store.steps() == [3]
    before = parts.recorder
    assert isinstance(before, Records)
    assert [line["step"] for line in before.lines] == [0, 1, 2]
    parts, progress = resumed(store, twin(student))
    after = trained(parts, settings, progress)
    assert compared(before.lines + after.lines) == compared(undisturbed.lines)


class Gone:
    """A teacher that answers so many calls, then raises."""

    def __init__(self, teacher: Any, calls: int, error: Exception) -> None:
        self._teacher, self._calls, self._error = teacher, calls, error

    def score(
        self, sequences: Any, positions: Any, representation: Any, temperature: float
    ) -> TeacherTargets:
        self._calls -= 1
        if self._calls < 0:
            raise self._error
        targets: TeacherTargets = self._teacher.score(
            sequences, positions, representation, temperature
        )
        return targets


@pytest.mark.parametrize("prefetch_steps", [0, 3])
@pytest.mark.parametrize(
    "error", [TeacherUnavailable("gone"), TeacherError("bad"), StopRequested()]
)
def test_a_teacher_that_fails_within_a_step_leaves_the_last_step_boundary(
    student: CausalStudent,
    teacher: InProcessTeacher,
    tmp_path: Path,
    prefetch_steps: int,
    error: Exception,
) -> None:
    settings = settings_of(6, objective=KD, micro_batch_sequences=1)
    straight, again = twin(student), twin(student)
    trained(parts_of(straight, teacher=teacher), settings)
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    # 2 batches of validation, 4 micro-batches a step: the second of step 2 is not answered.
    parts = parts_of(
        student,
        teacher=Gone(teacher, 2 + 9, error),
        prefetch_steps=prefetch_steps,
        checkpoints=store,
    )
    if isinstance(error, StopRequested):
        assert not train(parts, settings, Progress())
    else:
        with pytest.raises(type(error)):
            train(parts, settings, Progress())
    assert store.steps() == [2]
    parts, progress = resumed(store, again, teacher=teacher)
    trained(parts, settings, progress)
    assert same(again, straight)


def test_a_teacher_that_fails_within_an_evaluation_loses_no_point_of_the_curve(
    student: CausalStudent, teacher: InProcessTeacher, tmp_path: Path
) -> None:
    settings = settings_of(4, objective=KD, evaluate_every=2)
    straight, again = twin(student), twin(student)
    undisturbed = trained(parts_of(straight, teacher=teacher), settings)
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    # 2 batches of validation, 2 steps: the second batch of the second evaluation is not answered.
    gone = Gone(teacher, 2 + 2 + 1, TeacherUnavailable("gone"))
    parts = parts_of(student, teacher=gone, checkpoints=store)
    with pytest.raises(TeacherUnavailable):
        train(parts, settings, Progress())
    assert store.steps() == [2]
    before = parts.recorder
    assert isinstance(before, Records)
    parts, progress = resumed(store, again, teacher=teacher)
    after = trained(parts, settings, progress)
    assert same(again, straight)
    keys = (*COMPARED, "val/kl", "val/top1_agreement")
    curves = [
        [{key: line[key] for key in keys if key in line} for line in lines]
        for lines in (before.lines + after.lines, undisturbed.lines)
    ]
    assert curves[0] == curves[1]
    assert "val/kl" in curves[0][2]


# ---- early stopping ------------------------------------------------------------------------------


def early(steps: int, **changes: Any) -> Any:
    """Learns for four steps, then drifts away."""
    rates = [1e-2] * 4 + [0.3] * (steps - 4)
    return settings_of(
        steps, evaluate_every=2, patience=2, learning_rate=lambda step: rates[step], **changes
    )


def test_a_run_ends_when_its_patience_is_over_and_its_best_is_a_checkpoint(
    student: CausalStudent, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=1)
    parts, progress = parts_of(student, checkpoints=store), Progress()
    records = trained(parts, early(40), progress)
    losses = dict(zip([0, 2, 4, 6, 8], records.curve("loss/val"), strict=True))
    assert min(losses, key=lambda step: losses[step]) == 4
    assert (progress.step, progress.best.step, progress.best.loss) == (8, 4, losses[4])
    assert records.lines[-1]["step"] == 8
    assert store.steps() == [4, 8]


def test_every_new_best_is_saved_and_the_first_evaluation_is_one(
    student: CausalStudent, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep_last=9, keep_best=1)
    parts = parts_of(student, checkpoints=store)
    trained(parts, early(40))
    assert store.steps() == [0, 2, 4, 8]
    without = CheckpointStore(tmp_path / "without", keep_last=9, keep_best=1)
    trained(parts_of(twin(student), checkpoints=without), settings_of(4, evaluate_every=2))
    assert without.steps() == [4]


@pytest.mark.parametrize("stop_step", [0, 2, 5, 6, 7, 8])
def test_patience_goes_on_counting_where_a_stopped_run_left_off(
    student: CausalStudent, tmp_path: Path, stop_step: int
) -> None:
    straight, again = twin(student), twin(student)
    whole = Progress()
    undisturbed = trained(parts_of(straight), early(40), whole)
    stop, store = Stop(), CheckpointStore(tmp_path, keep_last=2, keep_best=1)
    recorder = StoppingAt(stop, stop_step)
    parts = parts_of(student, checkpoints=store, stop=stop, recorder=recorder)
    ended = train(parts, early(40), Progress())
    assert ended == (stop_step == 8)  # nothing is left to stop
    parts, progress = resumed(store, again)
    after = trained(parts, early(40), progress)
    assert (progress.step, progress.best) == (whole.step, whole.best)
    assert same(again, straight)
    lines = compared(recorder.lines)[:stop_step] + compared(after.lines)
    assert lines == compared(undisturbed.lines)


def test_a_best_whose_evaluation_was_broken_off_once_is_still_a_checkpoint_at_the_end(
    student: CausalStudent, tmp_path: Path
) -> None:
    """The checkpoint of the stop stays as it is, without the loss that is measured afterwards."""
    stop, store = Stop(), CheckpointStore(tmp_path, keep_last=1, keep_best=1)
    parts = stopped_in_evaluation(3, student, checkpoints=store, stop=stop)
    assert not train(parts, early(40), Progress())
    assert store.steps()[-1] == 4
    parts, progress = resumed(store, twin(student))
    trained(parts, early(40), progress)
    assert (progress.step, progress.best.step) == (8, 4)
    assert {4, 8} <= set(store.steps())


def test_without_patience_the_best_is_known_and_ends_nothing(student: CausalStudent) -> None:
    progress = Progress()
    trained(parts_of(student), replace(early(12), patience=None), progress)
    assert (progress.step, progress.best.step) == (12, 4)
    assert progress.best.is_over(2)


def test_a_state_of_before_patience_is_read(student: CausalStudent) -> None:
    state = Progress(step=3, tokens_seen=9).state()
    del state["best"]
    assert Progress.of_state(state) == Progress(step=3, tokens_seen=9)


def test_a_finished_run_that_is_resumed_with_more_steps_goes_on(
    student: CausalStudent, tmp_path: Path
) -> None:
    straight, again = twin(student), twin(student)
    trained(parts_of(straight), settings_of(8))
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    trained(parts_of(student, checkpoints=store), settings_of(5))
    parts, progress = resumed(store, again)
    trained(parts, settings_of(8), progress)
    assert same(again, straight)


def test_a_finished_run_that_is_resumed_makes_no_step(
    student: CausalStudent, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    trained(parts_of(student, checkpoints=store), settings_of(3))
    parts, progress = resumed(store, twin(student))
    records = trained(parts, settings_of(3), progress)
    assert [line["step"] for line in records.lines] == [3]
    assert records.saved == []
