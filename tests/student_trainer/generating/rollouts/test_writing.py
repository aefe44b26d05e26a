"""In which order rollouts are written, asked about and learnt, and what a checkpoint holds."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.errors import CorruptData
from student_trainer.batch import Batch
from student_trainer.data.prompt_set import PromptSet
from student_trainer.generating.rollouts.plan import Plan, Slot
from student_trainer.generating.rollouts.rows import Rollout
from student_trainer.generating.rollouts.saved import rollouts_of, tensors_of
from student_trainer.generating.rollouts.writing import Rollouts, Writer
from student_trainer.generating.sampling import Sampling
from student_trainer.ranks.world import Ranks
from student_trainer.stop import Stop
from student_trainer.student.student import CausalStudent
from student_trainer.targets import DenseTargets
from tests.support.training.parts import tiny_student


class Scripted(Writer):
    """Writes (step, row) instead of asking the student, the last row first."""

    def write(self, student: CausalStudent, slots: Sequence[Slot], stop: Stop) -> Iterator[Rollout]:
        for slot in reversed(slots):
            log.append(("written", slot.step, slot.row))
            ids = [slot.step] * (slot.row + 1)
            yield Rollout(slot, self.prompts.ids(slot.prompt), ids, 5 if slot.row % 2 else None)


log: list[tuple[str, int, int]] = []


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CausalStudent:
    return tiny_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    log.clear()


def writer_of(stale_steps: int, **plan: Any) -> Writer:
    prompts = PromptSet(3, None, None, 7, lambda index: np.full(1 + index % 3, index, np.uint32))
    settings: dict[str, Any] = {
        "seed": 0,
        "fraction": 1,
        "sequences_per_step": 4,
        "samples_per_prompt": 1,
        "num_prompts": 7,
        "micro_batch": 3,
    }
    own = Plan(**{**settings, **plan})
    sampling = Sampling(1.0, max_new_tokens=8)
    return Scripted(prompts, own, sampling, frozenset([5]), frozenset(), 9, 0, stale_steps)


def rollouts_by(writer: Writer, student: CausalStudent, end: int = 3) -> Rollouts:
    lock = threading.Lock()

    def ask(batch: Batch, step: int) -> DenseTargets:
        with lock:
            log.append(("asked", step, batch.num_valid))
        return DenseTargets(torch.full((batch.num_valid, 2), float(batch.num_valid)))

    return Rollouts(writer, student, ask, micro_batch=3, ranks=Ranks(), end=end, stop=Stop())


def test_rows_are_learnt_in_their_order_with_their_own_answers(student: CausalStudent) -> None:
    rollouts = rollouts_by(writer_of(0), student)
    for step in range(3):
        rollouts.prepare(step)
        batches = rollouts.micro_batches(step)
        assert [[one.slot.row for one in part.rollouts] for part in batches] == [[0, 1, 2], [3]]
        for part in batches:
            assert part.answer is not None
            answered = part.answer()
            assert isinstance(answered, DenseTargets)
            lengths = [len(one.completion) for one in part.rollouts]
            assert answered.logits_NV[:, 0].tolist() == [
                float(length) for length in lengths for _ in range(length)
            ]
        assert (rollouts.last.rows, rollouts.last.tokens) == (4, 1 + 3 + 3 + 5)
        assert rollouts.in_flight(step) == []
    rollouts.close()
    assert [entry[1:] for entry in log if entry[0] == "written"] == [
        (step, row) for step in range(3) for row in (3, 2, 1, 0)
    ]


def test_stale_rows_are_written_a_step_before_they_are_learnt(student: CausalStudent) -> None:
    rollouts = rollouts_by(writer_of(1), student)
    steps = []
    for step in range(3):
        log.clear()
        rollouts.prepare(step)
        steps.append([entry[1] for entry in log if entry[0] == "written"])
        assert [one.slot.step for one in rollouts.in_flight(step)] == [step] * 4
        for part in rollouts.micro_batches(step):
            assert part.answer is not None
            part.answer()
    rollouts.close()
    assert steps == [[0] * 4 + [1] * 4, [2] * 4, [3] * 4]
    # Those of the step after the last are only for a resume with more steps.
    assert 3 not in [entry[1] for entry in log if entry[0] == "asked"]


def test_rollouts_of_a_checkpoint_are_asked_about_and_not_written(student: CausalStudent) -> None:
    writer = writer_of(1)
    first = rollouts_by(writer, student)
    first.prepare(0)
    tensors = tensors_of(first.in_flight(1) or [], writer, 1, Ranks())
    first.close()
    log.clear()
    again = rollouts_by(writer, student)
    held = rollouts_of(tensors, writer, 1, 0)
    assert held is not None
    again.go_on_with(held, 1)
    again.prepare(1)
    for part in again.micro_batches(1):
        assert part.answer is not None
        part.answer()
    again.close()
    assert {entry[1] for entry in log if entry[0] == "written"} == {2}
    assert sorted(entry[2] for entry in log if entry[:2] == ("asked", 1)) == [1, 3, 3, 5]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_saved_rollouts_come_back_on_any_number_of_ranks(
    student: CausalStudent, ranks: int
) -> None:
    writer = writer_of(1, micro_batch=1)
    written = list(writer.write(student, writer.plan.slots(6), Stop()))
    tensors = tensors_of(written, writer, 6, Ranks())
    other = writer_of(1, micro_batch=1, ranks=ranks)
    found = [rollouts_of(tensors, other, 6, rank) for rank in range(ranks)]
    expected = sorted(written, key=lambda one: one.slot.row)
    flat = [one for part in found for one in part or ()]
    assert [one.slot for one in flat] == [one.slot for one in expected]
    for ours, theirs in zip(flat, expected, strict=True):
        assert (ours.ids, ours.end) == (theirs.ids, theirs.end)
        assert np.array_equal(ours.prompt_ids, theirs.prompt_ids)


@pytest.mark.parametrize("barred", [6, 5])
def test_rollouts_with_an_id_that_is_barred_now_are_written_anew(
    student: CausalStudent, barred: int
) -> None:
    """As a text's ids, and as its end; on a rank, too, whose own rollouts lack it."""
    writer = writer_of(1, micro_batch=1, ranks=4)
    written = list(writer.write(student, writer.plan.slots(6), Stop()))
    tensors = tensors_of(written, writer, 6, Ranks())
    for id_, there in ((barred, False), (9, True)):
        other = replace(writer, barred=frozenset([id_]))
        for rank in range(4):
            assert (rollouts_of(tensors, other, 6, rank) is not None) is there


def test_why_no_text_ends_is_said() -> None:
    writer = writer_of(0)
    assert writer.never_ends is None
    assert replace(writer, barred=frozenset([4])).never_ends is None
    both = replace(writer, ends=frozenset([5, 6]), barred=frozenset([5]))
    assert both.never_ends is None
    without = replace(writer, ends=frozenset()).never_ends
    assert without is not None and "name a token that ends a text" in without
    barred = replace(both, barred=frozenset([4, 5, 6])).never_ends
    assert barred is not None and "no say in the tokens that end a text ([5, 6])" in barred


def test_rollouts_of_another_step_or_of_other_rows_are_refused(student: CausalStudent) -> None:
    writer = writer_of(1)
    written = list(writer.write(student, writer.plan.slots(6), Stop()))
    tensors = tensors_of(written, writer, 6, Ranks())
    for other, step in ((writer, 7), (writer_of(1, sequences_per_step=8), 6)):
        with pytest.raises(CorruptData, match="of other rows"):
            rollouts_of(tensors, other, step, 0)
    assert rollouts_of({}, writer, 6, 0) is None
    assert tensors_of([], writer_of(0), 6, Ranks()) == {}
    assert tensors_of([], writer, 6, Ranks()) == {}
