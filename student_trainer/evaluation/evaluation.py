"""How good a student is on rows held out for it: alone, and beside its teacher.

    loss/val             cross entropy, in nats per token
    val/kl               KL(teacher || student), in nats per token; with top_k answers that over
                         k + 1 outcomes, a lower bound; with sampled ones an estimate, from the same
                         draws at every evaluation (Representation.kd_is says which)
    val/top1_agreement   share of the positions where both sides' likeliest token is the same

All at temperature 1, whatever the run distils at, so that runs compare. A teacher is asked for what
it is asked for in training, so nothing further crosses the wire than a row of it; draws do not tell
the likeliest token, which then is one more request.

Legend: N valid positions, n positions of a chunk, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest, RepresentationNotOffered
from lectern_common.wire.formats import Representation
from lectern_models.output_head import OutputHead
from student_trainer.batch import Batch
from student_trainer.objective.loss import Objective, auto_chunk_tokens, distillation_loss
from student_trainer.stop import Stop
from student_trainer.student.forward import ask, at_valid_positions
from student_trainer.student.student import Student
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    TargetsProvider,
    TeacherTargets,
    TopKTargets,
)
from student_trainer.teacher.prefetch import Prefetch

_CROSS_ENTROPY = Objective(alpha=1.0, temperature=1.0)
# The weights are of no account: both terms are read off apart.
_BOTH = Objective(alpha=0.5, temperature=1.0)
_LIKELIEST = Representation("top_k", top_k=1)


class EvaluationSums(NamedTuple):
    """Sums over valid positions. Those of several batches, or ranks, are added up field by field.

    `kl` and `agreeing` are over `kl_positions` and `compared_positions`, 0 where nothing was asked.
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
        """Returns the means by name; none of what was not measured.

        Raises:
            InvalidRequest: there is no valid position.
        """
        if not self.positions:
            raise InvalidRequest("the validation set has no valid position")
        metrics = {"loss/val": self.ce / self.positions}
        if self.kl_positions:
            metrics["val/kl"] = self.kl / self.kl_positions
        if self.compared_positions:
            metrics["val/top1_agreement"] = self.agreeing / self.compared_positions
        return metrics


class Answers(NamedTuple):
    """The teacher at the valid positions of a batch; None: not asked, or not told."""

    targets: TeacherTargets | None = None
    likeliest: TeacherTargets | None = None


@dataclass
class ValidationTeacher:
    """The teacher, as it is asked about validation rows.

    Attributes:
        representation: asked for in training, and here.
        prefetch_steps: batches asked about while the student computes.
        cancel: ends calls under way for good; called where an evaluation is broken off.
        on_left_out: told once of a metric that cannot be had, and why.
    """

    provider: TargetsProvider
    representation: Representation
    prefetch_steps: int = 0
    cancel: Callable[[], None] = lambda: None
    on_left_out: Callable[[str, str], None] = lambda _metric, _why: None
    _tells_likeliest: bool = field(default=True, init=False)

    @contextmanager
    def asked_about(
        self, batches: Sequence[Batch], stop: Stop
    ) -> Iterator[Callable[[int], Answers]]:
        """Gives a function of a batch's index, called in rising order, that returns its answers.

        It raises as TargetsProvider.score, and StopRequested.
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
    """Returns the sums over all valid positions of all batches, dropout off.

    The student is left in the mode that it was in. Each batch is one forward of it, also where it
    has no valid position: ranks that share a student make equally many.

    Args:
        student: on `device`.
        batches: held in memory at once.
        teacher: to compare with; None: the cross entropy alone.
        chunk_tokens: positions whose logits exist at one time; None chooses.
        together: what may end an evaluation happens within it: reading the batches, then once a
            batch (Ranks.together).

    Raises:
        StopRequested: a stop was requested.
        LecternError: what the teacher raised.
    """
    with together():
        listed = list(batches)
    was_training = student.training
    student.eval()
    sums = EvaluationSums()
    try:
        with ExitStack() as stack:
            answers = None
            if teacher is not None:
                answers = stack.enter_context(teacher.asked_about(listed, stop))
            for index, batch in enumerate(listed):
                with together():
                    stop.check()
                    said = Answers() if answers is None else answers(index)
                sums = sums.plus(_batch_sums(student, batch, device, said, chunk_tokens))
    finally:
        student.train(was_training)
    return sums


def _batch_sums(
    student: Student, batch: Batch, device: torch.device, said: Answers, chunk_tokens: int | None
) -> EvaluationSums:
    targets = None if said.targets is None else said.targets.to(device)
    likeliest = targets if said.likeliest is said.targets else said.likeliest
    objective = replace(
        _CROSS_ENTROPY if targets is None else _BOTH,
        chunk_tokens=chunk_tokens,
    )

    def compute(
        hidden_ND: Tensor, head: OutputHead, labels_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss = distillation_loss(hidden_ND, head, labels_N, targets, objective, 1)
        agreeing = torch.zeros((), dtype=torch.int64)
        if likeliest is not None:
            agreeing = num_agreeing(hidden_ND, head, likeliest.to(device), chunk_tokens)
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
    """Returns the answer for a batch; None where it has no valid position."""
    [micro_batch] = asked.take(index)
    return None if micro_batch.answer is None else micro_batch.answer()


@torch.no_grad()
def num_agreeing(
    hidden_ND: Tensor, head: OutputHead, targets: TeacherTargets, chunk_tokens: int | None = None
) -> Tensor:
    """Returns at how many of N positions both sides' largest logit is of the same id; int64 [].

    Of equal logits the lower id counts. [N, V] never exists.

    Args:
        hidden_ND: the student's final-norm hidden states.
        head: the student's.
        targets: the teacher at the same positions, of any kind but draws.
        chunk_tokens: positions whose logits exist at one time; None chooses.

    Raises:
        InvalidRequest: the targets are draws, which do not tell the likeliest id, or are of other
            positions.
    """
    if len(targets) != len(hidden_ND):
        raise InvalidRequest(f"{len(hidden_ND)} rows, but {len(targets)} of the teacher", "targets")
    size = chunk_tokens or auto_chunk_tokens(head.vocab_size, hidden_ND.device)
    agreeing = torch.zeros((), dtype=torch.int64, device=hidden_ND.device)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        for start in range(0, len(hidden_ND), size):
            stop = min(start + size, len(hidden_ND))
            ours_n = head.logits(hidden_ND[start:stop]).argmax(-1)
            agreeing += (ours_n == _likeliest(targets.rows(start, stop))).sum()
    return agreeing


def _likeliest(targets: TeacherTargets) -> Tensor:
    """Returns the teacher's likeliest id at each position, int64 [n]."""
    if isinstance(targets, TopKTargets):
        return targets.ids_NK[:, 0]
    if isinstance(targets, DenseTargets):
        return targets.logits_NV.argmax(-1)
    if isinstance(targets, HiddenTargets):
        return targets.head.logits(targets.hidden_ND).argmax(-1)
    raise InvalidRequest("draws do not tell the teacher's likeliest token", "targets")
