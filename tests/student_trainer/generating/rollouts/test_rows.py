"""Batches of rollouts, and the rows of data that are left."""

from typing import Any

import numpy as np
import pytest

from student_trainer.batch import Batch
from student_trainer.data.rows import ShuffledBatches
from student_trainer.generating.rollouts.plan import Plan, Slot
from student_trainer.generating.rollouts.rows import DataRows, Rollout, batch_of_rollouts
from student_trainer.targets import IGNORE_INDEX
from tests.support.training.parts import cyclic_rows

NO = IGNORE_INDEX


def rollout(prompt: list[int], ids: list[int], end: int | None, row: int = 0) -> Rollout:
    return Rollout(Slot(0, row, 0, 0), np.array(prompt, np.uint32), ids, end)


def test_a_completion_and_its_end_are_the_labels() -> None:
    batch = batch_of_rollouts([rollout([7, 8, 9], [1, 2], 5)])
    assert batch.inputs_BS.tolist() == [[7, 8, 9, 1, 2]]
    assert batch.labels_BS.tolist() == [[NO, NO, 1, 2, 5]]
    assert batch.lengths_B is None and batch.position_ids_BS is None


def test_a_cut_completion_has_no_end_token() -> None:
    batch = batch_of_rollouts([rollout([7, 8, 9], [1, 2], None)])
    assert batch.inputs_BS.tolist() == [[7, 8, 9, 1]]
    assert batch.labels_BS.tolist() == [[NO, NO, 1, 2]]


def test_a_text_that_ends_at_once_teaches_its_end() -> None:
    batch = batch_of_rollouts([rollout([7, 8], [], 5), rollout([3], [], 5)])
    assert batch.inputs_BS.tolist() == [[7, 8], [3, 0]]
    assert batch.labels_BS.tolist() == [[NO, 5], [5, NO]]
    assert batch.lengths_B is not None and batch.lengths_B.tolist() == [2, 1]


def test_rows_are_padded_at_their_ends_and_padding_is_never_asked_about() -> None:
    parts = [rollout([7, 8, 9], [1, 2], 5), rollout([4], [6], None), rollout([2, 3], [1], 5)]
    batch = batch_of_rollouts(parts)
    assert batch.inputs_BS.shape == (3, 5)
    assert batch.num_tokens == 5 + 1 + 3
    assert batch.num_valid == sum(len(part.completion) for part in parts)
    asked = list(batch.sequences())
    for part, (ids, valid) in zip(parts, asked, strict=True):
        ((own, own_valid),) = batch_of_rollouts([part]).sequences()
        assert ids.tolist() == own.tolist() == [*part.prompt_ids, *part.completion][:-1]
        assert valid.tolist() == own_valid.tolist()


def test_no_rollouts_are_a_row_without_a_valid_position() -> None:
    batch = batch_of_rollouts([])
    assert (batch.inputs_BS.shape, batch.num_valid, batch.num_tokens) == ((1, 1), 0, 0)
    assert list(batch.sequences()) == []


def data_rows(**changes: Any) -> tuple[list[DataRows], list[ShuffledBatches], Plan]:
    ranks, micro_batch = changes.pop("ranks", 1), changes.get("micro_batch", 2)
    plan = Plan(
        **{
            "seed": 0,
            "fraction": 0.5,
            "sequences_per_step": 8,
            "samples_per_prompt": 1,
            "num_prompts": 9,
            "micro_batch": 2,
            "ranks": ranks,
            **changes,
        }
    )
    whole = [ShuffledBatches(cyclic_rows(), 8, 0, rank, ranks) for rank in range(ranks)]
    left = [DataRows(part, plan, rank, micro_batch) for rank, part in enumerate(whole)]
    return left, whole, plan


def test_the_rows_of_data_are_those_of_a_run_without_rollouts() -> None:
    (left,), (whole,), plan = data_rows()
    for step in range(30):
        kept = left.batch_at(step)
        expected = whole.batch_at(step).rows(np.flatnonzero(~plan.is_written(step)))
        assert np.array_equal(kept.inputs_BS.reshape(-1, 8), expected.inputs_BS)
        assert np.array_equal(kept.labels_BS.reshape(-1, 8), expected.labels_BS)


def test_a_step_may_have_no_rows_of_data() -> None:
    (left,), _, _ = data_rows(fraction=0.999)
    batch = left.batch_at(3)
    assert batch.num_valid == batch.num_tokens == 0
    assert batch.micro_batches(2) == []


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_ranks_have_equally_many_micro_batches(micro_batch: int) -> None:
    left, whole, plan = data_rows(ranks=2, micro_batch=micro_batch)
    filled = 0
    for step in range(40):
        batches = [part.batch_at(step) for part in left]
        counts = {len(batch.micro_batches(micro_batch)) for batch in batches}
        assert counts == {plan.micro_batches(step, written=False)}
        for rank, batch in enumerate(batches):
            own: Batch = whole[rank].batch_at(step)
            kept = np.flatnonzero(~plan.is_written(step)[plan.share(rank)])
            valid = batch.valid_BS.any(1)
            assert batch.labels_BS[valid].tolist() == own.labels_BS[kept].tolist()
            # Rows that only fill up are no tokens that the student has seen.
            assert batch.num_tokens == own.rows(kept).num_tokens
            filled += int((~valid).sum())
    assert filled
