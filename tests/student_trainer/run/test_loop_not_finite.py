"""A loss or gradient that is not finite: skipped, counted, and fatal after three in a row."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lectern_common.errors import (
    DiskFull,
    Diverged,
    LecternError,
)
from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.objective.loss import Objective
from student_trainer.ranks.world import Ranks
from student_trainer.run.loop import train
from student_trainer.run.parts import Parts, Progress
from student_trainer.student.student import CausalStudent
from student_trainer.targets import DenseTargets, TeacherTargets
from student_trainer.teacher.advice import TeacherBound, TeacherFacts, WaitAdvice
from student_trainer.teacher.local import InProcessTeacher
from tests.support.training.parts import (
    KD,
    VOCAB_SIZE,
    Records,
    parts_of,
    same,
    settings_of,
    twin,
)


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


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(student: CausalStudent) -> None:
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
def test_a_first_step_that_is_not_finite_does_not_count_as_equal(
    student: CausalStudent, divergence: tuple[str, float | None]
) -> None:
    parts = parts_of(student, teacher=NotFiniteAt(0), validation=None)
    progress = Progress()
    objective = Objective(0.0, 2.0, *divergence)
    assert train(parts, settings_of(2, objective=objective), progress)
    assert (progress.step, progress.skipped_steps) == (2, 1)


class Agreeing(Ranks):
    """Keeps the errors that ended `together()`, where all ranks can leave."""

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
def test_an_event_without_disk_space_ends_all_ranks_at_one_place(
    student: CausalStudent, teacher: InProcessTeacher, kind: str
) -> None:
    refused = kind

    class Full(Records):
        def event(self, kind: str, **details: Any) -> None:
            if kind == refused:
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


def test_three_skips_in_a_row_end_the_run_and_name_the_last_checkpoint(
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
