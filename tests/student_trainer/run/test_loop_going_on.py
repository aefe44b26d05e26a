"""Whatever ends the loop between two checkpoints, it resumes as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lectern_common.errors import (
    TeacherError,
    TeacherUnavailable,
)
from student_trainer.data.rows import ShuffledBatches
from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.run.loop import train
from student_trainer.run.parts import Progress
from student_trainer.stop import Stop, StopRequested
from student_trainer.student.student import CausalStudent
from student_trainer.targets import TeacherTargets
from student_trainer.teacher.local import InProcessTeacher
from tests.support.training.parts import (
    KD,
    Fixed,
    Records,
    cyclic_rows,
    parts_of,
    same,
    settings_of,
    tiny_student,
    trained,
    twin,
)
from tests.support.training.runs import COMPARED
from tests.support.training.stops import StoppingAt, compared, resumed, stopped_in_evaluation


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


@pytest.mark.parametrize("stop_step", [0, 1, 4, 6])
@pytest.mark.parametrize(
    ("dropout", "asked"),
    [
        (0.0, {"kind": "dense"}),
        (0.2, {"kind": "dense"}),
        (0.0, {"kind": "sampled", "num_draws": 3}),
    ],
)
def test_a_stopped_run_resumes_bit_equal(
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
    torch.manual_seed(1)  # the caller's random state does not matter
    assert not train(parts, settings, Progress())
    assert store.steps() == [stop_step]

    torch.manual_seed(2)
    parts, progress = resumed(store, again, teacher=teacher, **asked)
    after = trained(parts, settings, progress)
    assert same(again, straight)
    lines = compared(recorder.lines)[:stop_step] + compared(after.lines)
    assert lines == compared(undisturbed.lines)


def test_dropout_depends_only_on_seed_and_step(tmp_path: Path) -> None:
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


def test_the_callers_random_state_is_restored(student: CausalStudent) -> None:
    before = torch.random.get_rng_state()
    trained(parts_of(student), settings_of(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_stop_during_an_evaluation_loses_no_point_of_the_curve(
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
    """A teacher that answers `calls` calls, then raises."""

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
def test_a_teacher_that_fails_during_a_step_leaves_a_checkpoint_of_its_start(
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
    # 2 validation batches, 4 micro-batches per step: the second of step 2 is not answered.
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


def test_a_teacher_that_fails_during_an_evaluation_loses_no_point_of_the_curve(
    student: CausalStudent, teacher: InProcessTeacher, tmp_path: Path
) -> None:
    settings = settings_of(4, objective=KD, evaluate_every=2)
    straight, again = twin(student), twin(student)
    undisturbed = trained(parts_of(straight, teacher=teacher), settings)
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    # 2 validation batches, 2 steps: the second batch of the second evaluation is not answered.
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


def test_a_finished_run_resumed_with_more_steps_continues(
    student: CausalStudent, tmp_path: Path
) -> None:
    straight, again = twin(student), twin(student)
    trained(parts_of(straight), settings_of(8))
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    trained(parts_of(student, checkpoints=store), settings_of(5))
    parts, progress = resumed(store, again)
    trained(parts, settings_of(8), progress)
    assert same(again, straight)


def test_a_finished_run_makes_no_step_when_resumed(student: CausalStudent, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=0)
    trained(parts_of(student, checkpoints=store), settings_of(3))
    parts, progress = resumed(store, twin(student))
    records = trained(parts, settings_of(3), progress)
    assert [line["step"] for line in records.lines] == [3]
    assert records.saved == []
