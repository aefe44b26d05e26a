"""Validation loss, KL and agreement, against float64 over the models' own logits."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lectern_common.errors import (
    DataUnavailable,
    InvalidRequest,
    LecternError,
    RepresentationNotOffered,
    TeacherError,
)
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.batch import Batch, batch_of
from student_trainer.data.rows import in_order
from student_trainer.evaluation.evaluation import EvaluationSums, ValidationTeacher, evaluation_sums
from student_trainer.objective.reference import kd_loss
from student_trainer.stop import Stop, StopRequested
from student_trainer.student.student import CausalStudent, FixtureStudent
from student_trainer.targets import IGNORE_INDEX, TeacherTargets
from student_trainer.teacher.local import FixtureTeacher, InProcessTeacher
from tests.support.training.parts import (
    CPU,
    cyclic_rows,
    parts_of,
    settings_of,
    tiny_student,
    trained,
    twin,
)


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


def validation_loss(student: CausalStudent, batches: Any, stop: Stop | None = None) -> float:
    return evaluation_sums(student, batches, CPU, stop or Stop()).metrics()["loss/val"]


def at_valid(model: Any, batches: list[Batch]) -> Any:
    """Returns the model's own logits at every valid position of all batches, float64 [N, V]."""
    rows = []
    with torch.no_grad():
        for batch in batches:
            logits = model.eval()(input_ids=torch.from_numpy(batch.inputs_BS)).logits
            rows.append(logits[torch.from_numpy(batch.valid_BS)].double())
    return torch.cat(rows).numpy()


# ---- without a teacher -------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_all_valid_positions(student: CausalStudent) -> None:
    """Not the mean of batch means: batches differ in valid positions, and the last in rows."""
    batches = masked_batches()
    labels = np.concatenate([batch.labels_BS[batch.valid_BS] for batch in batches])
    logits = torch.from_numpy(at_valid(student.model, batches))
    expected = F.cross_entropy(logits, torch.from_numpy(labels))
    assert validation_loss(student, batches) == pytest.approx(expected.item(), rel=1e-6)


def test_micro_batches_change_nothing(student: CausalStudent) -> None:
    losses = [validation_loss(student, in_order(cyclic_rows(7), size)) for size in (1, 3, 7)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_off_and_the_mode_is_kept(student: CausalStudent, training: bool) -> None:
    student.train(training)
    once, twice = (validation_loss(student, masked_batches()) for _ in range(2))
    assert once == twice
    assert student.training is training


def test_no_gradient_is_left_behind(student: CausalStudent) -> None:
    student.zero_grad(set_to_none=True)
    validation_loss(student, masked_batches())
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_stop_ends_an_evaluation_between_batches(student: CausalStudent) -> None:
    stop = Stop()
    stop.request()
    student.train()
    with pytest.raises(StopRequested):
        validation_loss(student, masked_batches(), stop)
    assert student.training


def test_unreadable_rows_end_an_evaluation_where_all_ranks_can_leave(
    student: CausalStudent,
) -> None:
    def batches() -> Iterator[Batch]:
        yield from masked_batches()[:1]
        raise DataUnavailable("gone")

    heard = []

    @contextmanager
    def together() -> Iterator[None]:
        try:
            yield
        except LecternError as error:
            heard.append(error.reason)
            raise

    with pytest.raises(DataUnavailable):
        evaluation_sums(student, batches(), CPU, Stop(), together=together)
    assert heard == [DataUnavailable.reason]


def test_nothing_to_evaluate_is_an_error(student: CausalStudent) -> None:
    with pytest.raises(InvalidRequest):
        validation_loss(student, [])


class Counting(CausalStudent):
    """Counts its forwards."""

    forwards = 0

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.forwards += 1
        return super().forward(*arguments, **named)


def test_a_batch_without_a_valid_position_still_makes_a_forward(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """Ranks that share a student must make equally many forwards."""
    counting = Counting(student.model)
    batches = masked_batches()
    empty = Batch(batches[0].inputs_BS, np.full_like(batches[0].labels_BS, IGNORE_INDEX))
    asked = ValidationTeacher(teacher, Representation("hidden"))
    with_it = evaluation_sums(counting, [empty, *batches], CPU, Stop(), asked)
    assert counting.forwards == len(batches) + 1
    assert with_it == evaluation_sums(student, batches, CPU, Stop(), asked)


# ---- with a teacher ----------------------------------------------------------------------------


def measured(
    student: CausalStudent, teacher: Any, kind: str, prefetch_steps: int = 0, **asked: Any
) -> dict[str, float]:
    answers = ValidationTeacher(teacher, Representation(kind, **asked), prefetch_steps)
    return evaluation_sums(student, masked_batches(), CPU, Stop(), answers, 5).metrics()


def reference(student: CausalStudent, teacher: InProcessTeacher, **asked: Any) -> dict[str, float]:
    """Returns the same metrics in float64, one position at a time."""
    batches = masked_batches()
    ours, theirs = at_valid(student.model, batches), at_valid(teacher._model, batches)
    kls = [kd_loss(s, t, 0, 1.0, 0.0, **asked) for s, t in zip(ours, theirs, strict=True)]
    return {
        "val/kl": float(np.mean(kls)),
        "val/top1_agreement": float(np.mean(ours.argmax(1) == theirs.argmax(1))),
    }


@pytest.mark.parametrize(
    ("kind", "asked"), [("dense", {}), ("hidden", {}), ("top_k", {"top_k": 5})]
)
def test_kl_and_agreement_match_the_models_own_logits(
    student: CausalStudent, teacher: InProcessTeacher, kind: str, asked: dict[str, Any]
) -> None:
    """With top_k the KL is over k + 1 outcomes, a lower bound."""
    metrics, expected = measured(student, teacher, kind, **asked), reference(student, teacher)
    assert metrics["val/top1_agreement"] == expected["val/top1_agreement"]
    assert 0 < metrics["val/top1_agreement"] < 1
    exact = expected["val/kl"]
    assert exact > 0.1
    bound = reference(student, teacher, **asked)["val/kl"]
    assert metrics["val/kl"] == pytest.approx(bound, rel=1e-5)
    assert bound < exact if kind == "top_k" else bound == exact


def test_the_loss_is_the_same_with_and_without_a_teacher(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    alone = validation_loss(student, masked_batches())
    assert measured(student, teacher, "hidden")["loss/val"] == pytest.approx(alone, rel=1e-9)


def test_a_student_equal_to_its_teacher_is_0_nats_away_and_agrees_everywhere(
    student: CausalStudent,
) -> None:
    metrics = measured(student, InProcessTeacher(twin(student).model), "dense")
    assert metrics["val/kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["val/top1_agreement"] == 1


def test_draws_estimate_the_kl_and_a_second_request_gives_the_likeliest(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    expected = reference(student, teacher)
    metrics = measured(student, teacher, "sampled", num_draws=250)
    assert metrics["val/top1_agreement"] == expected["val/top1_agreement"]
    assert metrics["val/kl"] == pytest.approx(expected["val/kl"], rel=0.1)
    assert metrics["val/kl"] != pytest.approx(expected["val/kl"], rel=1e-6)
    again = measured(student, teacher, "sampled", num_draws=250)
    assert again == metrics  # the same draws at every evaluation


class Teacher:
    """Forwards and keeps requests, and refuses or fails as configured."""

    def __init__(self, teacher: Any, refuses: str = "", fails_at: int = -1) -> None:
        self._teacher, self._refuses, self._fails_at = teacher, refuses, fails_at
        self.asked: list[tuple[str, float]] = []
        self._lock = threading.Lock()

    def score(
        self, sequences: Any, positions: Any, representation: Any, temperature: float
    ) -> TeacherTargets:
        with self._lock:
            self.asked.append((representation.kind, temperature))
            count = len(self.asked)
        if representation.kind == self._refuses:
            raise RepresentationNotOffered(f"{representation.kind} is not on offer")
        if count == self._fails_at:
            raise TeacherError("bad")
        targets: TeacherTargets = self._teacher.score(
            sequences, positions, representation, temperature
        )
        return targets


@pytest.mark.parametrize("prefetch_steps", [0, 2])
def test_an_unavailable_metric_is_left_out_and_reported_once(
    student: CausalStudent, teacher: InProcessTeacher, prefetch_steps: int
) -> None:
    said: list[tuple[str, str]] = []
    answers = ValidationTeacher(
        Teacher(teacher, refuses="top_k"),
        Representation("sampled", num_draws=9),
        prefetch_steps,
        on_left_out=lambda metric, why: said.append((metric, why)),
    )
    for _ in range(2):
        metrics = evaluation_sums(student, masked_batches(), CPU, Stop(), answers).metrics()
        assert metrics.keys() == {"loss/val", "val/kl"}
    assert said == [("val/top1_agreement", "top_k is not on offer")]


@pytest.mark.parametrize("kind", ["hidden", "sampled"])
def test_prefetching_changes_no_bit_and_asks_at_temperature_1(
    student: CausalStudent, teacher: InProcessTeacher, kind: str
) -> None:
    asked = {"num_draws": 4} if kind == "sampled" else {}
    waiting, ahead = Teacher(teacher), Teacher(teacher)
    metrics = [
        measured(student, one, kind, prefetch_steps, **asked)
        for one, prefetch_steps in ((waiting, 0), (ahead, 3))
    ]
    assert metrics[0] == metrics[1]
    kinds = [("hidden", 1.0)] * 3 if kind == "hidden" else [("sampled", 1.0), ("top_k", 1.0)] * 3
    assert waiting.asked == kinds
    assert sorted(ahead.asked) == sorted(kinds)


@pytest.mark.parametrize("prefetch_steps", [0, 2])
def test_an_error_of_the_teacher_ends_the_evaluation_and_its_calls(
    student: CausalStudent, teacher: InProcessTeacher, prefetch_steps: int
) -> None:
    cancelled: list[bool] = []
    answers = ValidationTeacher(
        Teacher(teacher, fails_at=2),
        Representation("hidden"),
        prefetch_steps,
        cancel=lambda: cancelled.append(True),
    )
    student.train()
    with pytest.raises(TeacherError):
        evaluation_sums(student, masked_batches(), CPU, Stop(), answers)
    assert cancelled == [True]
    assert student.training


def test_a_complete_evaluation_does_not_cancel_the_teachers_calls(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """`cancel` is permanent, and answers for coming steps are still being fetched."""
    cancelled: list[bool] = []
    answers = ValidationTeacher(
        teacher, Representation("hidden"), 2, cancel=lambda: cancelled.append(True)
    )
    evaluation_sums(student, masked_batches(), CPU, Stop(), answers)
    assert cancelled == []


def test_sums_of_parts_add_up_to_the_whole(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    """This is how ranks combine their sums: not as the mean of their means."""
    answers = ValidationTeacher(teacher, Representation("top_k", 3))
    batches = masked_batches()
    whole = evaluation_sums(student, batches, CPU, Stop(), answers)
    parts = [evaluation_sums(student, part, CPU, Stop(), answers) for part in ([batches[2]], [])]
    rest = evaluation_sums(student, batches[:2], CPU, Stop(), answers)
    added = rest.plus(parts[0]).plus(parts[1])
    assert added.metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    assert parts[1] == EvaluationSums()


def test_no_head_sees_all_positions_at_once(
    student: CausalStudent, teacher: InProcessTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    project = OutputHead.logits

    def listening(self: OutputHead, hidden_ND: Any) -> Any:
        sizes.append(len(hidden_ND))
        return project(self, hidden_ND)

    monkeypatch.setattr(OutputHead, "logits", listening)
    measured(student, teacher, "hidden")
    assert sizes
    assert max(sizes) == 5


def test_a_distilling_run_is_compared_with_its_teacher_at_every_evaluation(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    from student_trainer.objective.loss import Objective

    objective = Objective(alpha=0.0, temperature=3.0)
    parts = parts_of(twin(student), teacher=teacher, kind="hidden")
    records = trained(parts, settings_of(40, objective=objective, evaluate_every=20, rate=1e-2))
    evaluated = [line for line in records.lines if "loss/val" in line]
    assert [line["step"] for line in evaluated] == [0, 20, 40]
    for line in evaluated:
        assert line["time/evaluation_seconds"] > 0
        assert 0 <= line["val/top1_agreement"] <= 1
    kls = records.curve("val/kl")
    assert kls[0] > kls[1] > kls[2] > 0
    alone = trained(parts_of(twin(student)), settings_of(1))
    assert "val/kl" not in alone.lines[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_evaluation_on_cuda_matches_the_cpu(
    student: CausalStudent, teacher: InProcessTeacher
) -> None:
    cuda, there = torch.device("cuda", 0), twin(student).to("cuda:0")
    answers = ValidationTeacher(teacher, Representation("top_k", 5))
    ours = evaluation_sums(there, masked_batches(), cuda, Stop(), answers).metrics()
    assert ours == pytest.approx(measured(student, teacher, "top_k", top_k=5), rel=1e-4)


def test_a_student_that_rules_out_ids_has_a_validation_loss_but_no_kl() -> None:
    """Only jsd can teach it; its forward KL from a teacher that uses them is infinite."""

    class Masked(FixtureStudent):
        def output_head(self) -> OutputHead:
            bias = torch.zeros(8)
            bias[7] = -torch.inf
            return OutputHead(self.get_buffer("_identity_VV"), bias)

    said: list[tuple[str, str]] = []
    teacher = ValidationTeacher(
        FixtureTeacher(8),
        Representation("dense"),
        on_left_out=lambda metric, why: said.append((metric, why)),
    )
    batch = batch_of([np.array([1, 2, 3, 4, 5], np.uint32)])
    for _ in range(2):
        metrics = evaluation_sums(Masked(8), [batch], CPU, Stop(), teacher).metrics()
        assert metrics.keys() == {"loss/val", "val/top1_agreement"}
        assert metrics["loss/val"] == pytest.approx(math.log(7))
    [(metric, why)] = said
    assert metric == "val/kl" and "rules out ids" in why
