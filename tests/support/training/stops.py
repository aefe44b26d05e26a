"""Loops that are stopped, and resumed from their checkpoints."""

from typing import Any

from student_trainer.journal.checkpoint import CheckpointStore
from student_trainer.run.parts import Parts, Progress
from student_trainer.stop import Stop
from student_trainer.student.student import CausalStudent
from student_trainer.student.tensors import load_model_tensors, load_optimizer_tensors
from tests.support.training.parts import (
    Records,
    parts_of,
    twin,
)
from tests.support.training.runs import COMPARED


def resumed(store: CheckpointStore, fresh: CausalStudent, **changes: Any) -> tuple[Parts, Progress]:
    """Returns parts and progress as a new process loads them from the newest checkpoint."""
    found = store.newest()
    assert found is not None
    parts = parts_of(fresh, checkpoints=store, **changes)
    load_model_tensors(fresh, found.model_tensors())
    load_optimizer_tensors(parts.optimizer, fresh, found.optimizer_tensors())
    return parts, Progress.of_state(found.state)


def compared(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: line[key] for key in COMPARED if key in line} for line in lines]


class StoppingAt(Records):
    """Requests a stop when a given step is recorded."""

    def __init__(self, stop: Stop, step: int) -> None:
        super().__init__()
        self._stop, self._step = stop, step

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        super().record(step, metrics)
        if step == self._step:
            self._stop.request()


class ToldAt(Records):
    """Is told at a given step to stop at the next checkpoint."""

    def __init__(self, stop: Stop, step: int) -> None:
        super().__init__()
        self._stop, self._step = stop, step

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        super().record(step, metrics)
        if step == self._step:
            self._stop.request_at_checkpoint()


def stopped_in_evaluation(
    number: int, student: CausalStudent, *, stop: Stop, checkpoints: CheckpointStore
) -> Parts:
    """Returns parts of a twin; a stop is requested when evaluation `number` (from 1) begins."""
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
