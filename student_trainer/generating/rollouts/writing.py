"""Writes a step's rollouts with the student, asks the teacher about each, and hands them out.

With `stale_steps` 0, step s writes with the weights at s, and the teacher is asked about each
rollout as soon as it is finished. With 1, step s first writes the rollouts of s + 1, still with the
weights at s, and then learns those of s, which the teacher has scored meanwhile; so a checkpoint at
s holds the rollouts of s. The first step has none in flight and writes its own.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from student_trainer.batch import Batch
from student_trainer.data.prompt_set import PromptSet
from student_trainer.generating.generator import written
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.rollouts.plan import Plan, Slot, uniforms_of
from student_trainer.generating.rollouts.rows import Rollout, WrittenBatch, batch_of_rollouts
from student_trainer.generating.sampling import Sampling
from student_trainer.ranks.sharding import whole_weights
from student_trainer.ranks.world import Ranks
from student_trainer.stop import Stop
from student_trainer.student.student import CausalStudent
from student_trainer.targets import TeacherTargets, joined
from student_trainer.teacher.prefetch import MAX_THREADS, Answer, Asking


@dataclass(frozen=True)
class Writer:
    """How the student writes.

    Attributes:
        prompts: what it continues.
        plan: which rows of a step.
        sampling: how tokens are chosen.
        ends: ids that end a completion.
        barred: ids that are never chosen: those in which the teacher has no say.
        max_rows: rows written at a time; a function of spec, student and prompts, as the
            texts depend on it by rounding.
        seed: of the run.
        stale_steps: how many steps before it is learnt a row is written.
    """

    prompts: PromptSet
    plan: Plan
    sampling: Sampling
    ends: frozenset[int]
    barred: frozenset[int]
    max_rows: int
    seed: int
    stale_steps: int = 0

    @property
    def never_ends(self) -> str | None:
        """Why no completion ends by itself, for people to read; None if completions may."""
        if self.ends - self.barred:
            return None
        why = "neither the student's files nor the data name a token that ends a text"
        if self.ends:
            why = (
                f"the teacher has no say in the tokens that end a text ({sorted(self.ends)}), so "
                "the student never writes them"
            )
        return f"{why}: every completion is cut at rollout.max_new_tokens"

    def write(self, student: CausalStudent, slots: Sequence[Slot], stop: Stop) -> Iterator[Rollout]:
        """Yields the student's rollouts as they are finished, in no fixed order.

        Raises:
            StopRequested: a stop was requested.
            Diverged: the student's logits are not a distribution.
        """
        asked = [self.prompts.ids(slot.prompt) for slot in slots]
        prompts = [
            Prompt(ids.tolist(), partial(uniforms_of, self.seed, slot))
            for ids, slot in zip(asked, slots, strict=True)
        ]
        for found in written(
            student.model,
            prompts,
            self.sampling,
            ends=self.ends,
            barred=self.barred,
            max_rows=self.max_rows,
            stop=stop,
        ):
            index = found.index
            yield Rollout(slots[index], asked[index], found.ids, found.end)


@dataclass
class WrittenBy:
    """What a rank wrote in a step: rollouts of this or, with stale_steps 1, of the next one.

    Attributes:
        rows: how many rollouts.
        tokens: of their completions, end tokens included.
        seconds: how long it took.
    """

    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Rollouts:
    """The rollouts of a run's steps on one rank, in the order of the steps.

    Args:
        writer: how they are written.
        student: writes them.
        ask: asks the teacher about a batch of one rollout of a step, blocking; called from several
            threads.
        micro_batch: rows computed at a time.
        ranks: that train the run together; each writes its own rows.
        end: one past the last step.
        stop: ends writing and every wait.
        cancel: makes calls of `ask` in flight end soon.
        progressed: called with each rollout.
    """

    def __init__(
        self,
        writer: Writer,
        student: CausalStudent,
        ask: Callable[[Batch, int], TeacherTargets],
        *,
        micro_batch: int,
        ranks: Ranks,
        end: int,
        stop: Stop,
        cancel: Callable[[], None] = lambda: None,
        progressed: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = writer
        self._student = student
        self._ask = ask
        self._micro_batch = micro_batch
        self._ranks = ranks
        self._end = end
        self._stop = stop
        self._progressed = progressed
        self._asking = Asking("rollouts", MAX_THREADS, stop, cancel)
        self._in_hand: dict[int, list[Rollout]] = {}
        self._answers: dict[Slot, Answer] = {}
        self.last = WrittenBy()

    def close(self) -> None:
        """Ends the threads. Returns within a few seconds."""
        self._asking.close(list(self._answers.values()))

    @property
    def waited_seconds(self) -> float:
        """Seconds that the loop has waited for answers about rollouts so far."""
        return self._asking.waited_seconds

    def go_on_with(self, rollouts: Sequence[Rollout], step: int) -> None:
        """Takes the rollouts of `step` from a checkpoint; those of this rank are given."""
        self._in_hand[step] = list(rollouts)

    def in_flight(self, step: int) -> list[Rollout]:
        """Returns the rollouts of a step that were written before it; [] without any."""
        return self._in_hand.get(step, []) if self._writer.stale_steps else []

    def prepare(self, step: int) -> None:
        """Writes what the step has to write, and asks the teacher. All ranks call it.

        Raises:
            StopRequested, LecternError: on all ranks, at the same place.
        """
        self.last = WrittenBy()
        for past in [one for one in self._in_hand if one < step]:
            del self._in_hand[past]
        if step in self._in_hand:
            for rollout in self._in_hand[step]:
                self._request(rollout)
        for coming in range(step, step + self._writer.stale_steps + 1):
            if coming not in self._in_hand:
                self._in_hand[coming] = self._write(coming)

    def micro_batches(self, step: int) -> list[WrittenBatch]:
        """Returns this rank's rollouts of a step in row order, with their answers to come.

        As many as on the rank that has the most; further ones have no valid position.
        """
        rollouts, size = self._in_hand[step], self._micro_batch
        count = self._writer.plan.micro_batches(step, written=True)
        found = []
        for index in range(count):
            part = rollouts[index * size : (index + 1) * size]
            answers = [self._answers.pop(rollout.slot) for rollout in part]
            answer = _joined(answers) if answers else None
            found.append(WrittenBatch(batch_of_rollouts(part), answer, part))
        return found

    def _write(self, step: int) -> list[Rollout]:
        plan = self._writer.plan
        if not plan.micro_batches(step, written=True):
            return []
        began = time.perf_counter()
        slots, rollouts = plan.slots(step, self._ranks.rank), list[Rollout]()
        with whole_weights(self._student), self._ranks.together(), self._student.generating():
            for rollout in self._writer.write(self._student, slots, self._stop) if slots else ():
                rollouts.append(rollout)
                self.last.tokens += len(rollout.completion)
                self._progressed()
                # The rollouts of the step after the last are only for a resume with more steps.
                if step < self._end:
                    self._request(rollout)
        self.last.rows += len(rollouts)
        self.last.seconds += time.perf_counter() - began
        return sorted(rollouts, key=lambda rollout: rollout.slot.row)

    def _request(self, rollout: Rollout) -> None:
        if rollout.slot not in self._answers:
            batch, step = batch_of_rollouts([rollout]), rollout.slot.step
            self._answers[rollout.slot] = self._asking.answer_of(lambda: self._ask(batch, step))


def _joined(answers: Sequence[Answer]) -> Answer:
    """Returns the answer about several rollouts, in their order."""
    return lambda: joined([answer() for answer in answers])
