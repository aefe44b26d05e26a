"""A loop that is told to stop at its next checkpoint ends right after that one."""

from pathlib import Path
from typing import Any

import pytest

from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.run.loop import train
from student_trainer.run.parts import Progress
from student_trainer.stop import Stop
from student_trainer.student.student import CausalStudent
from tests.support.training.parts import Records, parts_of, settings_of, twin
from tests.support.training.stops import ToldAt, compared, resumed


class Saves(CheckpointStore):
    """Counts what is saved."""

    def __init__(self, folder: Path, keep_best: int = 0) -> None:
        super().__init__(folder, keep_last=9, keep_best=keep_best)
        self.saved: list[int] = []

    def save(self, step: int, *rest: Any) -> Path:
        self.saved.append(step)
        return super().save(step, *rest)


@pytest.mark.parametrize(("told", "stops"), [(0, 3), (1, 3), (2, 3), (3, 3), (4, 6), (6, 6)])
def test_it_ends_after_the_next_checkpoint_with_one_save_and_no_step_lost(
    student: CausalStudent, tmp_path: Path, told: int, stops: int
) -> None:
    settings = settings_of(8, checkpoint_every=3, evaluate_every=2)
    undisturbed = Records()
    train(parts_of(twin(student), recorder=undisturbed), settings, Progress())
    stop, store = Stop(), Saves(tmp_path)
    records = ToldAt(stop, told)
    progress = Progress()
    parts = parts_of(twin(student), checkpoints=store, stop=stop, recorder=records)
    assert train(parts, settings, progress) is False
    assert (progress.step, store.saved[-1], store.saved.count(stops)) == (stops, stops, 1)
    rest = Records()
    parts, progress = resumed(store, twin(student), recorder=rest)
    assert train(parts, settings, progress) is True
    lines = [line for line in records.lines if line["step"] < stops] + rest.lines
    assert compared(lines) == compared(undisturbed.lines)


def test_without_another_checkpoint_before_its_end_it_finishes(
    student: CausalStudent, tmp_path: Path
) -> None:
    stop, store = Stop(), Saves(tmp_path)
    parts = parts_of(student, checkpoints=store, stop=stop, recorder=ToldAt(stop, 7))
    assert train(parts, settings_of(8, checkpoint_every=3), Progress()) is True
    assert store.saved == [3, 6, 8]


def test_a_stop_now_comes_before_the_checkpoint(student: CausalStudent, tmp_path: Path) -> None:
    stop, store = Stop(), Saves(tmp_path)
    records = ToldAt(stop, 4)
    parts = parts_of(student, checkpoints=store, stop=stop, recorder=records)
    record = records.record

    def both(step: int, metrics: dict[str, Any]) -> None:
        record(step, metrics)
        if step == 5:
            stop.request()

    records.record = both  # type: ignore[method-assign]
    assert train(parts, settings_of(9, checkpoint_every=3), Progress()) is False
    assert store.saved == [3, 5]


def test_the_checkpoint_of_a_new_lowest_loss_is_one(student: CausalStudent, tmp_path: Path) -> None:
    stop, store = Stop(), Saves(tmp_path, keep_best=1)
    parts = parts_of(student, checkpoints=store, stop=stop, recorder=ToldAt(stop, 1))
    progress = Progress()
    settings = settings_of(9, checkpoint_every=100, evaluate_every=2, patience=5)
    assert train(parts, settings, progress) is False
    assert progress.step == progress.best.step == store.saved[-1]
    assert store.saved.count(progress.step) == 1
