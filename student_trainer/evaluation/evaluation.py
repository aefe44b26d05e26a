"""Validation metrics on held-out rows: the loss, and how close the student is to its teacher.

    loss/val             cross entropy, in nats per token
    val/kl               KL(teacher || student), in nats per token; with top_k over k + 1 outcomes,
                         a lower bound; with sampled an estimate, from the same draws at every
                         evaluation (Representation.kd_is says which)
    val/top1_agreement   share of positions where student and teacher have the same likeliest token

All at temperature 1, whatever the run's temperature, so that runs can be compared. The teacher is
asked for the same representation as in training, so each position costs one row of it on the wire.
Sampled draws do not reveal the likeliest token, which takes a second request.

Legend: N valid positions, n positions of a chunk, V vocabulary, D hidden size.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT, Untaught
from lectern_common.errors import InvalidRequest, RepresentationNotOffered
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.batch import Batch
from student_trainer.evaluation.calibration import Calibration
from student_trainer.objective.loss import Objective, auto_chunk_tokens, distillation_loss
from student_trainer.stop import Stop
from student_trainer.student.forward import ask, at_valid_positions
from student_trainer.student.student import Student
from student_trainer.targets import TargetsProvider, TeacherTargets, likeliest_ids
from student_trainer.teacher.prefetch import Prefetch

# The weights do not matter: each term is read separately.
_BOTH = Objective(alpha=0.5, temperature=1.0, may_be_infinite=True)
_LIKELIEST = Representation("top_k", top_k=1)


class EvaluationSums(NamedTuple):
    """Sums over valid positions. Batches and ranks are added up field by field.

    `kl` and `agreeing` are over `kl_positions` and `compared_positions`, which are 0 if the teacher
    was not asked.
    """

    positions: float = 0
    ce: float = 0
    kl_positions: float = 0
    kl: float = 0
    compared_positions: float = 0
    agreeing: float = 0

    def plus(self, other: "EvaluationSums") -> "EvaluationSums":
        return EvaluationSums(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))

    def metrics(self) -> dict[str, float]:
        """Returns the means by name, without those that were not measured.

        Without `val/kl` too if it is infinite: the student rules out an id that the teacher does
        not, which only jsd can learn from.

        Raises:
            InvalidRequest: there is no valid position.
        """
        if not self.positions:
            raise InvalidRequest("the validation set has no valid position")
        metrics = {"loss/val": self.ce / self.positions}
        if self.kl_positions and math.isfinite(self.kl):
            metrics["val/kl"] = self.kl / self.kl_positions
        if self.compared_positions:
            metrics["val/top1_agreement"] = self.agreeing / self.compared_positions
        return metrics


class Answers(NamedTuple):
    """The teacher's answers at the valid positions of a batch; None if not asked or not offered."""

    targets: TeacherTargets | None = None
    likeliest: TeacherTargets | None = None


@dataclass
class ValidationTeacher:
    """Asks the teacher about validation rows.

    Attributes:
        representation: the same as in training.
        prefetch_steps: batches requested ahead while the student computes.
        cancel: cancels pending calls for good; called if an evaluation is interrupted.
        on_left_out: called once with (metric, reason) if a metric is not available.
        untaught: the student's ids in which the teacher has no say.
        calibration: also adds up how well calibrated the student is; None means it does not.
    """

    provider: TargetsProvider
    representation: Representation
    prefetch_steps: int = 0
    cancel: Callable[[], None] = lambda: None
    on_left_out: Callable[[str, str], None] = lambda _metric, _why: None
    untaught: Untaught = NOTHING_UNTAUGHT
    calibration: Calibration | None = None
    _tells_likeliest: bool = field(default=True, init=False)
    _said_infinite: bool = field(default=False, init=False)

    def report_infinite(self) -> None:
        """Says once that val/kl is left out."""
        if not self._said_infinite:
            self._said_infinite = True
            why = "it is infinite: the student rules out ids (logits of -inf) that the teacher uses"
            self.on_left_out("val/kl", why)

    @contextmanager
    def asked_about(
        self, batches: Sequence[Batch], stop: Stop
    ) -> Iterator[Callable[[int], Answers]]:
        """Yields a function that returns the answers for a batch, by index in ascending order.

        The function raises what TargetsProvider.score raises, and StopRequested.
        """
        draws = self.representation.kind == "sampled"
        with ExitStack() as stack:
            own = stack.enter_context(self._asking(batches, self.representation, stop))
            further = None
            if draws and self._tells_likeliest:
                further = stack.enter_context(self._asking(batches, _LIKELIEST, stop))

            def answers(index: int) -> Answers:
                targets = _taken(own, index)
                if not draws:
                    return Answers(targets, targets)
                return Answers(targets, self._likeliest(further, index))

            try:
                yield answers
            except BaseException:
                self.cancel()
                raise

    def _asking(
        self, batches: Sequence[Batch], representation: Representation, stop: Stop
    ) -> Prefetch:
        return Prefetch(
            _Listed(batches),
            lambda batch, _: ask(self.provider, batch, representation, 1.0),
            micro_batch_sequences=max((len(batch.inputs_BS) for batch in batches), default=1),
            prefetch_steps=self.prefetch_steps,
            end=len(batches),
            stop=stop,
        )

    def _likeliest(self, asked: Prefetch | None, index: int) -> TeacherTargets | None:
        if asked is None or not self._tells_likeliest:
            return None
        try:
            return _taken(asked, index)
        except RepresentationNotOffered as error:
            self._tells_likeliest = False
            self.on_left_out("val/top1_agreement", str(error))
            return None


@torch.no_grad()
def evaluation_sums(
    student: Student,
    batches: Iterable[Batch],
    device: torch.device,
    stop: Stop,
    teacher: ValidationTeacher | None = None,
    chunk_tokens: int | None = None,
    together: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> EvaluationSums:
    """Returns the sums over all valid positions of all batches, with dropout off.

    The student's training mode is restored. Each batch is one forward, even without a valid
    position, because ranks that share a student must make equally many.

    Args:
        student: on `device`.
        batches: all held in memory.
        teacher: to compare with; None means only the cross entropy.
        chunk_tokens: positions whose logits exist at a time; None means automatic.
        together: wraps everything that may end an evaluation: reading the batches, then each batch
            (Ranks.together).

    Raises:
        StopRequested: a stop was requested.
        LecternError: what the teacher raised.
    """
    with together():
        listed = list(batches)
    was_training = student.training
    student.eval()
    sums = EvaluationSums()
    both = replace(_BOTH, chunk_tokens=chunk_tokens)
    if teacher is not None:
        both = both.leaving_out(teacher.untaught)
    try:
        with ExitStack() as stack:
            answers = None
            if teacher is not None:
                answers = stack.enter_context(teacher.asked_about(listed, stop))
            for index, batch in enumerate(listed):
                with together():
                    stop.check()
                    said = Answers() if answers is None else answers(index)
                calibration = None if teacher is None else teacher.calibration
                sums = sums.plus(_batch_sums(student, batch, device, said, both, calibration))
    finally:
        student.train(was_training)
    if teacher is not None and math.isinf(sums.kl):
        teacher.report_infinite()
    return sums


def _batch_sums(
    student: Student,
    batch: Batch,
    device: torch.device,
    said: Answers,
    both: Objective,
    calibration: Calibration | None = None,
) -> EvaluationSums:
    targets = None if said.targets is None else said.targets.to(device)
    likeliest = targets if said.likeliest is said.targets else said.likeliest
    objective = replace(both, alpha=1.0) if targets is None else both

    def compute(
        hidden_ND: Tensor, head: OutputHead, labels_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss = distillation_loss(hidden_ND, head, labels_N, targets, objective, 1)
        agreeing = torch.zeros((), dtype=torch.int64)
        if likeliest is not None:
            theirs = likeliest.to(device)
            agreeing = num_agreeing(hidden_ND, head, theirs, both.chunk_tokens, calibration)
        return loss.ce_sum, loss.kd_sum, agreeing

    ce, kl, agreeing = at_valid_positions(student, batch, device, compute)
    positions = batch.num_valid
    return EvaluationSums(
        positions=positions,
        ce=ce.item(),
        kl_positions=0 if targets is None else positions,
        kl=kl.item(),
        compared_positions=0 if likeliest is None else positions,
        agreeing=agreeing.item(),
    )


@dataclass(frozen=True)
class _Listed:
    batches: Sequence[Batch]

    def batch_at(self, step: int) -> Batch:
        return self.batches[step]


def _taken(asked: Prefetch, index: int) -> TeacherTargets | None:
    """Returns the answer for a batch; None if it has no valid position."""
    [micro_batch] = asked.take(index)
    return None if micro_batch.answer is None else micro_batch.answer()


@torch.no_grad()
def num_agreeing(
    hidden_ND: Tensor,
    head: OutputHead,
    targets: TeacherTargets,
    chunk_tokens: int | None = None,
    calibration: Calibration | None = None,
) -> Tensor:
    """Returns at how many of N positions student and teacher have the same likeliest id; int64 [].

    Of equal logits the lower id counts. [N, V] is never materialised.

    Args:
        hidden_ND: the student's final-norm hidden states.
        head: the student's.
        targets: the teacher's, at the same positions; anything but draws.
        chunk_tokens: positions whose logits exist at a time; None means automatic.
        calibration: gets the positions; None means nothing more is computed.

    Raises:
        InvalidRequest: the targets are draws, which do not reveal the likeliest id, or their number
            differs from N.
    """
    if len(targets) != len(hidden_ND):
        raise InvalidRequest(
            f"expected {len(hidden_ND)} teacher rows, got {len(targets)}", "targets"
        )
    size = chunk_tokens or auto_chunk_tokens(head.vocab_size, hidden_ND.device)
    agreeing = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, len(hidden_ND), size):
            stop = min(start + size, len(hidden_ND))
            logits_nV = head.logits(hidden_ND[start:stop])
            ours_n = logits_nV.argmax(-1)
            right_n = ours_n == likeliest_ids(targets.rows(start, stop))
            agreeing += right_n.sum()
            if calibration is not None:
                calibration.add(logits_nV.softmax(-1).amax(-1), right_n)
    return agreeing
