"""Which rows of a step the student writes, and from which prompts: a pure function of (seed, step).

So a resumed run writes what an undisturbed one writes, and no number of ranks changes the plan.

A step's rows are groups of `samples_per_prompt` in a row, and each group has its place in the order
of the prompts, whether the student writes it or not: with a fraction below 1, an epoch of prompts
passes over those whose rows are rows of data. Those are the rows that a run without rollouts has
there.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from student_trainer.data.rows import permutation
from student_trainer.seeds import Key, uniforms


@dataclass(frozen=True)
class Slot:
    """A row that the student writes.

    Attributes:
        step: the step that learns it.
        row: its place among all rows of the step, from 0.
        sample: which completion of its prompt it is, from 0.
        prompt: index of the prompt.
    """

    step: int
    row: int
    sample: int
    prompt: int


class Plan:
    """The rows of each step that the student writes. Not thread-safe.

    Args:
        seed: of the run.
        fraction: a group is written if its uniform number is below this.
        sequences_per_step: rows of a step on all ranks.
        samples_per_prompt: rows of a group; divides `sequences_per_step`.
        num_prompts: prompts there are.
        micro_batch: rows that a rank computes at a time.
        ranks: how many share the rows of a step equally, in order.
    """

    def __init__(
        self,
        *,
        seed: int,
        fraction: float,
        sequences_per_step: int,
        samples_per_prompt: int,
        num_prompts: int,
        micro_batch: int,
        ranks: int = 1,
    ) -> None:
        self._seed = seed
        self._fraction = fraction
        self._rows = sequences_per_step
        self._samples = samples_per_prompt
        self._num_prompts = num_prompts
        self._micro_batch = micro_batch
        self._share = sequences_per_step // ranks
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def groups(self) -> int:
        """Groups of a step: how many prompts it passes."""
        return self._rows // self._samples

    @property
    def steps_per_epoch(self) -> float:
        """Steps that it takes to pass every prompt once."""
        return self._num_prompts / self.groups

    def is_written(self, step: int) -> npt.NDArray[np.bool_]:
        """Returns for each row of a step, of all ranks, whether the student writes it."""
        if self._fraction >= 1:
            return np.ones(self._rows, bool)
        drawn = uniforms(Key.WRITTEN, (self._seed, step), self.groups)
        return np.repeat(drawn < self._fraction, self._samples)

    def share(self, rank: int) -> slice:
        """Returns which rows of a step are a rank's."""
        return slice(rank * self._share, (rank + 1) * self._share)

    def slots(self, step: int, rank: int | None = None) -> list[Slot]:
        """Returns the rows that the student writes, in order; those of one rank, or of all."""
        mine = range(self._rows)[slice(None) if rank is None else self.share(rank)]
        is_written = self.is_written(step)
        return [
            Slot(step, row, row % self._samples, self._prompt(step, row // self._samples))
            for row in mine
            if is_written[row]
        ]

    def micro_batches(self, step: int, *, written: bool) -> int:
        """Returns how many micro-batches of one kind a step has on the rank that has the most.

        Ranks that share a student must compute equally many.
        """
        of_kind = self.is_written(step) == written
        most = int(of_kind.reshape(-1, self._share).sum(1).max())
        return -(-most // self._micro_batch)

    def _prompt(self, step: int, group: int) -> int:
        epoch, place = divmod(step * self.groups + group, self._num_prompts)
        if epoch != self._epoch:
            key = Key.PROMPT_ORDER
            self._order = permutation(self._seed, epoch, self._num_prompts, key)
            self._epoch = epoch
        return int(self._order[place])


def uniforms_of(seed: int, slot: Slot, count: int) -> npt.NDArray[np.float64]:
    """Returns the numbers in [0, 1) that choose the first `count` tokens of a completion."""
    return uniforms(Key.ROLLOUTS, (seed, slot.step, slot.row, slot.sample), count)
