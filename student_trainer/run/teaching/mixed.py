"""A step and an evaluation of a run of several sources, each with its own teacher, or with none.

    loss/total         the mean over all valid positions of each one's own loss: with a teacher
                       alpha * CE + (1 - alpha) * T^2 * D, without one CE
    loss/ce            cross entropy, over the positions that have it; loss/ce/SOURCE
    loss/kd            divergence, over the positions that have a teacher; loss/kd/TEACHER
    loss/val           cross entropy over the held-out positions of all sources, each position
                       counting the same; loss/val/SOURCE
    val/kl, val/top1_agreement   over the held-out positions that have a teacher; .../TEACHER

What no row of a step, or of a validation set, is of is left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lectern_models.logits.output_head import OutputHead
from student_trainer.batch import Batch
from student_trainer.evaluation.calibration import Calibration
from student_trainer.evaluation.evaluation import EvaluationSums, ValidationTeacher, evaluation_sums
from student_trainer.objective.loss import Objective
from student_trainer.objective.several import OfSource, SourceLoss, loss_of_sources
from student_trainer.ranks.sharding import split_again
from student_trainer.ranks.world import Ranks
from student_trainer.run.checks import require_something_to_learn
from student_trainer.run.parts import Mixed, Parts, Settings, Teaching
from student_trainer.student.forward import ask, at_valid_positions
from student_trainer.targets import of_epoch, of_step
from student_trainer.teacher.prefetch import (
    Answer,
    AskedTeacher,
    MicroBatch,
    MixedPrefetch,
)


def mixed_prefetch(parts: Parts, mixed: Mixed, settings: Settings) -> MixedPrefetch:
    """Returns the micro-batches of the run's steps, each teacher asked about its sources."""
    temperature = settings.objective.temperature

    def asked(teaching: Teaching) -> AskedTeacher:
        def request(batch: Batch, step: int, source: int) -> Answer:
            wanted = of_step(teaching.representation, settings.seed, step)
            if teaching.is_recorded:
                wanted = of_epoch(wanted, mixed.epoch_of(source, step))
            return lambda: ask(teaching.provider, batch, wanted, temperature)

        return AskedTeacher(request, teaching.prefetch_steps, teaching.cancel)

    return MixedPrefetch(
        parts.batches,
        {name: asked(teaching) for name, teaching in mixed.teachings.items()},
        {index: source.teacher for index, source in enumerate(mixed.sources)},
        micro_batch_sequences=settings.micro_batch_sequences,
        end=settings.steps,
        stop=parts.stop,
    )


def mixed_micro_step(
    parts: Parts, mixed: Mixed, micro_batch: MicroBatch, normalizer: int
) -> tuple[SourceLoss, ...]:
    """Returns the losses of a micro-batch, and accumulates its gradients in the parameters."""
    objectives = [source.objective for source in mixed.sources]

    def compute(
        hidden_ND: Tensor, head: OutputHead, labels_N: Tensor
    ) -> tuple[Tensor, tuple[SourceLoss, ...]]:
        of_sources = list(_of_sources(micro_batch, objectives, parts.device))
        return loss_of_sources(hidden_ND, head, labels_N, of_sources, normalizer)

    total, losses = at_valid_positions(parts.student, micro_batch.batch, parts.device, compute)
    total.backward()
    return losses


def _of_sources(
    micro_batch: MicroBatch, objectives: Sequence[Objective], device: torch.device
) -> Iterator[OfSource]:
    """Yields the positions of each source that has any, with its teacher's answer."""
    row_of_position_N = np.nonzero(micro_batch.batch.valid_BS)[0]
    for share in micro_batch.shares:
        positions_n = np.flatnonzero(np.isin(row_of_position_N, share.rows))
        if len(positions_n):
            targets = None if share.answer is None else share.answer().to(device)
            on_device = torch.from_numpy(positions_n).to(device)
            yield OfSource(share.source, on_device, targets, objectives[share.source])


def mixed_loss_metrics(
    learnt: Sequence[SourceLoss], mixed: Mixed, normalizer: int, ranks: Ranks
) -> dict[str, float]:
    """Returns the losses of a step, over all ranks, and of how many positions of each source."""
    sums_K3 = np.zeros((len(mixed.sources), 3))
    for source, positions, loss in learnt:
        sums_K3[source] += [loss.ce_sum.item(), loss.kd_sum.item(), positions]
    sums_K3 = np.reshape(ranks.totals(*sums_K3.ravel()), sums_K3.shape)
    objectives = [source.objective for source in mixed.sources]
    total = sum(
        one.total(float(ce), float(kd))
        for one, (ce, kd, _) in zip(objectives, sums_K3, strict=True)
    )
    metrics = {"loss/total": total / normalizer}
    has_ce = np.array([one.alpha > 0 for one in objectives])
    by_source = {source.name: sums for source, sums in zip(mixed.sources, sums_K3, strict=True)}
    metrics |= _means("loss/ce", sums_K3[has_ce][:, [0, 2]].sum(0))
    for index, (name, (ce, _, positions)) in enumerate(by_source.items()):
        if has_ce[index]:
            metrics |= _means(f"loss/ce/{name}", (ce, positions))
    taught = {
        name: sums_K3[[source.teacher == name for source in mixed.sources]][:, 1:].sum(0)
        for name in mixed.teachings
    }
    metrics |= _means("loss/kd", sum(taught.values(), np.zeros(2)))
    for name, sums in taught.items():
        metrics |= _means(f"loss/kd/{name}", sums)
    for name, (_, _, positions) in by_source.items():
        metrics[f"data/valid_tokens/{name}"] = float(positions)
    return metrics


def _means(name: str, sums: Sequence[float] | np.ndarray) -> dict[str, float]:
    total, positions = (float(value) for value in sums)
    return {name: total / positions} if positions else {}


def require_another_student(
    parts: Parts,
    mixed: Mixed,
    micro_batches: Sequence[MicroBatch],
    metrics: Mapping[str, float],
) -> None:
    """Raises SameWeights if the student matches one of its teachers before any update.

    All ranks call it. A teacher of which the step has no rows is compared by its weights only
    (compatibility.py).
    """
    for name, teaching in mixed.teachings.items():
        if teaching.allow_same_weights or f"loss/kd/{name}" not in metrics:
            continue
        objective = next(one.objective for one in mixed.sources if one.teacher == name)
        require_something_to_learn(
            metrics[f"loss/kd/{name}"],
            objective,
            partial(_forward_kl, parts, mixed, name, micro_batches),
        )


@torch.no_grad()
def _forward_kl(
    parts: Parts, mixed: Mixed, teacher: str, micro_batches: Sequence[MicroBatch]
) -> float:
    """Returns KL(teacher || student) of a teacher's rows, in nats per valid position."""
    untaught, temperature = mixed.teachings[teacher].untaught, mixed.temperature
    objective = Objective(0.0, temperature, may_be_infinite=True).leaving_out(untaught)
    ours = [index for index, one in enumerate(mixed.sources) if one.teacher == teacher]
    total, positions = 0.0, 0.0
    for part in micro_batches:
        shares = tuple(share for share in part.shares if share.source in ours)
        only = replace(part, shares=shares)

        def compute(
            hidden_ND: Tensor, head: OutputHead, labels_N: Tensor, only: MicroBatch = only
        ) -> tuple[Tensor, tuple[SourceLoss, ...]]:
            of_sources = list(_of_sources(only, [objective] * len(mixed.sources), parts.device))
            return loss_of_sources(hidden_ND, head, labels_N, of_sources, 1)

        _, losses = at_valid_positions(parts.student, part.batch, parts.device, compute)
        total += sum(one.loss.kd_sum.item() for one in losses)
        positions += sum(one.num_positions for one in losses)
    split_again(parts.student)  # the update is still to come
    total, positions = parts.ranks.totals(total, positions)
    return total / max(1, positions)


def mixed_evaluation(
    parts: Parts,
    mixed: Mixed,
    chunk_tokens: int | None,
    together: Callable[[], AbstractContextManager[None]],
) -> tuple[EvaluationSums, dict[str, float]]:
    """Returns the sums over all sources and ranks, and the metrics: overall, by source, teacher."""
    by_source, by_teacher = {}, {name: EvaluationSums() for name in mixed.teachings}
    whole = EvaluationSums()
    for source in mixed.sources:
        own = evaluation_sums(
            parts.student,
            source.validation(),
            parts.device,
            parts.stop,
            mixed.asks_about_validation.get(source.teacher or ""),
            chunk_tokens,
            together,
        )
        own = EvaluationSums(*parts.ranks.totals(*own))
        whole, by_source[source.name] = whole.plus(own), own
        if source.teacher is not None:
            by_teacher[source.teacher] = by_teacher[source.teacher].plus(own)
    metrics = whole.metrics()
    for name, sums in by_source.items():
        metrics[f"loss/val/{name}"] = sums.metrics()["loss/val"]
    for name, sums in by_teacher.items():
        found = sums.metrics()
        metrics |= {f"{key}/{name}": found[key] for key in _OF_TEACHER if key in found}
    return whole, metrics


_OF_TEACHER = ("val/kl", "val/top1_agreement")


def validation_teachers(
    mixed_teachings: Mapping[str, Teaching],
    left_out: Callable[[str, str], None],
    calibration: Calibration | None,
) -> dict[str, ValidationTeacher]:
    """Returns how each teacher is asked about the held-out rows of its sources, by name."""

    def of(name: str, teaching: Teaching) -> ValidationTeacher:
        return ValidationTeacher(
            teaching.provider,
            teaching.representation,
            teaching.prefetch_steps,
            teaching.cancel,
            lambda metric, why: left_out(f"{metric}/{name}", why),
            teaching.untaught,
            calibration,
        )

    return {name: of(name, teaching) for name, teaching in mixed_teachings.items()}


def mixed_wire_metrics(mixed: Mixed, ranks: Ranks) -> dict[str, float]:
    """Returns what was received over the wire since the last step, of all and of each teacher."""
    taken = {
        name: teaching.take_received()
        for name, teaching in mixed.teachings.items()
        if teaching.take_received is not None
    }
    if not taken:
        return {}
    sums = np.reshape(ranks.totals(*(value for pair in taken.values() for value in pair)), (-1, 2))
    received_bytes, positions = (float(value) for value in sums.sum(0))
    metrics = {"wire/received_bytes": received_bytes, "wire/positions": positions}
    if positions:
        metrics["wire/bytes_per_token"] = received_bytes / positions
    for name, (own, _) in zip(taken, sums, strict=True):
        metrics[f"wire/received_bytes/{name}"] = float(own)
    return metrics


def slow_teachers(mixed: Mixed, record: Mapping[str, float]) -> Iterator[tuple[str, float, str]]:
    """Yields name, share of the time waited, and advice, of teachers that hold up the run."""
    for name, teaching in mixed.teachings.items():
        if teaching.advice is not None:
            waited = record.get(f"time/teacher_wait_seconds/{name}")
            bound = teaching.advice.after({**record, "time/teacher_wait_seconds": waited})
            if bound is not None:
                yield name, round(bound.share, 3), bound.advice
