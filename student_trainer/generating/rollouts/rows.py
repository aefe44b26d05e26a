"""Rollouts, and the batches that are made of them; and the rows of data that are left.

Legend: B rows, S tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from student_trainer.batch import Batch
from student_trainer.generating.rollouts.plan import Plan, Slot
from student_trainer.targets import IGNORE_INDEX
from student_trainer.teacher.prefetch import MicroBatch, TrainingBatches


@dataclass(frozen=True)
class Rollout:
    """A row that the student wrote.

    Attributes:
        slot: which row it is.
        prompt_ids: what it continues.
        ids: the completion, without the token that ended it.
        end: that token; None if the completion was cut.
    """

    slot: Slot
    prompt_ids: npt.NDArray[np.uint32]
    ids: list[int]
    end: int | None

    @property
    def completion(self) -> list[int]:
        """What is learnt: the completion, and the end token if there is one."""
        return self.ids if self.end is None else [*self.ids, self.end]


@dataclass(frozen=True)
class WrittenBatch(MicroBatch):
    """A micro-batch of rollouts; without any, it has one row without a valid position."""

    rollouts: Sequence[Rollout] = ()


def batch_of_rollouts(rollouts: Sequence[Rollout]) -> Batch:
    """Returns a batch of rollouts, padded at the end to the longest; padding has no valid label.

    Labels before the completion are IGNORE_INDEX; the position that predicts its first token is the
    last one of the prompt, and the end token is a label too. No rollouts make one row of padding.
    """
    if not rollouts:
        inputs_BS = np.zeros((1, 1), np.int64)
        return Batch(inputs_BS, np.full_like(inputs_BS, IGNORE_INDEX), None, np.zeros(1, np.int64))
    rows = [np.concatenate([one.prompt_ids, one.completion]).astype(np.int64) for one in rollouts]
    lengths_B = np.array([len(row) - 1 for row in rows], np.int64)
    inputs_BS = np.zeros((len(rows), int(lengths_B.max())), np.int64)
    labels_BS = np.full_like(inputs_BS, IGNORE_INDEX)
    for index, (rollout, row) in enumerate(zip(rollouts, rows, strict=True)):
        first = len(rollout.prompt_ids) - 1
        inputs_BS[index, : len(row) - 1] = row[:-1]
        labels_BS[index, first : len(row) - 1] = row[first + 1 :]
    is_padded = bool((lengths_B < inputs_BS.shape[1]).any())
    return Batch(inputs_BS, labels_BS, None, lengths_B if is_padded else None)


class DataRows:
    """The rows of data that a rank's steps keep: those that the student does not write.

    Args:
        batches: this rank's rows of each step, as they are without rollouts.
        plan: says which rows are written.
        rank: whose rows.
        micro_batch: rows computed at a time.
    """

    def __init__(self, batches: TrainingBatches, plan: Plan, rank: int, micro_batch: int) -> None:
        self._batches = batches
        self._plan = plan
        self._rank = rank
        self._micro_batch = micro_batch

    def batch_at(self, step: int) -> Batch:
        """Returns the rows of data of a step, maybe none.

        A rank with fewer rows than another has further ones that count as padding, so that all
        have equally many micro-batches.
        """
        written = self._plan.is_written(step)[self._plan.share(self._rank)]
        kept, others = np.flatnonzero(~written), np.flatnonzero(written)
        micro_batches = self._plan.micro_batches(step, written=False)
        missing = (micro_batches - 1) * self._micro_batch + 1 - len(kept)
        if not micro_batches:
            return _NO_ROWS
        batch = self._batches.batch_at(step)
        if missing <= 0:
            return batch.rows(kept)
        chosen = batch.rows(np.concatenate([kept, others[:missing]]))
        labels_BS = chosen.labels_BS.copy()
        labels_BS[len(kept) :] = IGNORE_INDEX
        lengths_B = chosen.lengths_B
        if lengths_B is None:
            lengths_B = np.full(len(labels_BS), labels_BS.shape[1], np.int64)
        lengths_B = np.where(np.arange(len(labels_BS)) < len(kept), lengths_B, 0)
        return replace(chosen, labels_BS=labels_BS, lengths_B=lengths_B)


class NoBatches:
    """The rows of data of a run whose rows the student writes, all of them: none."""

    def batch_at(self, step: int) -> Batch:
        return _NO_ROWS


_NO_ROWS = Batch(np.empty((0, 1), np.int64), np.empty((0, 1), np.int64))
