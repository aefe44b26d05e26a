"""The loop with patience: when it ends, which checkpoints it keeps, and across stops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.run.loop import train
from student_trainer.run.parts import Progress
from student_trainer.stop import Stop
from student_trainer.student.student import CausalStudent
from tests.support.training.parts import (
    parts_of,
    same,
    settings_of,
    trained,
    twin,
)
from tests.support.training.stops import StoppingAt, compared, resumed, stopped_in_evaluation


def early(steps: int, **changes: Any) -> Any:
    """Settings that learn for four steps, then drift away."""
    rates = [1e-2] * 4 + [0.3] * (steps - 4)
    return settings_of(
        steps, evaluate_every=2, patience=2, learning_rate=lambda step: rates[step], **changes
    )


def test_a_run_ends_when_its_patience_is_used_up_and_keeps_its_best(
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


def test_every_new_best_is_saved_including_the_first_evaluation(
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
def test_a_resumed_run_continues_to_count_its_patience(
    student: CausalStudent, tmp_path: Path, stop_step: int
) -> None:
    straight, again = twin(student), twin(student)
    whole = Progress()
    undisturbed = trained(parts_of(straight), early(40), whole)
    stop, store = Stop(), CheckpointStore(tmp_path, keep_last=2, keep_best=1)
    recorder = StoppingAt(stop, stop_step)
    parts = parts_of(student, checkpoints=store, stop=stop, recorder=recorder)
    ended = train(parts, early(40), Progress())
    assert ended == (stop_step == 8)  # at step 8 nothing is left to stop
    parts, progress = resumed(store, again)
    after = trained(parts, early(40), progress)
    assert (progress.step, progress.best) == (whole.step, whole.best)
    assert same(again, straight)
    lines = compared(recorder.lines)[:stop_step] + compared(after.lines)
    assert lines == compared(undisturbed.lines)


def test_a_best_whose_evaluation_was_interrupted_keeps_its_checkpoint(
    student: CausalStudent, tmp_path: Path
) -> None:
    """The checkpoint of the stop is not updated with the loss that is measured afterwards."""
    stop, store = Stop(), CheckpointStore(tmp_path, keep_last=1, keep_best=1)
    parts = stopped_in_evaluation(3, student, checkpoints=store, stop=stop)
    assert not train(parts, early(40), Progress())
    assert store.steps()[-1] == 4
    parts, progress = resumed(store, twin(student))
    trained(parts, early(40), progress)
    assert (progress.step, progress.best.step) == (8, 4)
    assert {4, 8} <= set(store.steps())


def test_without_patience_the_best_is_tracked_but_ends_nothing(student: CausalStudent) -> None:
    progress = Progress()
    trained(parts_of(student), replace(early(12), patience=None), progress)
    assert (progress.step, progress.best.step) == (12, 4)
    assert progress.best.is_over(2)


def test_a_state_from_before_patience_can_be_read(student: CausalStudent) -> None:
    state = Progress(step=3, tokens_seen=9).state()
    del state["best"]
    assert Progress.of_state(state) == Progress(step=3, tokens_seen=9)
