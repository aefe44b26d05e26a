"""The training loop.

Legend: B sequences of a micro-batch, S tokens, N its valid positions, D hidden size.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT
from lectern_common.errors import (
    DiskFull,
    Diverged,
    InvalidRequest,
    InvalidSpec,
    LecternError,
    SameWeights,
)
from lectern_models.logits.output_head import OutputHead
from lectern_models.ranks import whole
from student_trainer.batch import Batch
from student_trainer.evaluation.evaluation import EvaluationSums, ValidationTeacher, evaluation_sums
from student_trainer.generating.rollouts.judged import judged
from student_trainer.generating.rollouts.metrics import LearntBatch, rollout_metrics
from student_trainer.generating.rollouts.rows import WrittenBatch
from student_trainer.generating.rollouts.saved import tensors_of
from student_trainer.generating.rollouts.writing import Rollouts
from student_trainer.journal.activity import EVALUATION, STEP
from student_trainer.objective.loss import Objective, StepLoss, distillation_loss
from student_trainer.ranks.sharding import gathered, split_again
from student_trainer.run.checks import forward_kl_sum, require_something_to_learn
from student_trainer.run.metrics import (
    count_metrics,
    loss_metrics,
    memory_metrics,
    pace_metrics,
    progress_metrics,
    wire_metrics,
)
from student_trainer.run.optim import set_learning_rate
from student_trainer.run.parts import Parts, Progress, Settings
from student_trainer.run.teaching.mixed import (
    mixed_evaluation,
    mixed_loss_metrics,
    mixed_micro_step,
    mixed_prefetch,
    mixed_wire_metrics,
    require_another_student,
    slow_teachers,
)
from student_trainer.seeds import Key, derived_seed
from student_trainer.stop import StopRequested
from student_trainer.student.forward import ask, at_valid_positions
from student_trainer.student.student import CausalStudent
from student_trainer.student.tensors import model_tensors, optimizer_tensors
from student_trainer.targets import TeacherTargets, for_new_texts, of_epoch, of_step
from student_trainer.teacher.prefetch import MicroBatch, MixedPrefetch, Prefetch

# Steps in a row without a finite gradient that end a run.
MAX_SKIPPED_IN_A_ROW = 3
# The objective for no rows at all, which needs no teacher.
_NOTHING = Objective(alpha=1.0, temperature=1.0)


def train(parts: Parts, settings: Settings, progress: Progress) -> bool:
    """Makes the remaining steps, updating `progress`. Returns False if it was stopped.

    With s steps finished, each iteration does this:

      1. evaluate if due: before the first step, also of a fork, which brings no record; every so
         many steps, and after the last;
      2. record the metrics of the step just finished;
      3. save a checkpoint if due: every so many steps, after the last, and, with patience, at
         every new best evaluation;
      4. return after the last step, once patience is used up, or after the checkpoint at which it
         was to stop;
      5. otherwise make step s, as described in `_train_step`.

    A stop, or a teacher that does not answer, may end a step anywhere. Parameters change only at
    its very end, so the checkpoint that is then saved is that of the last step boundary. With
    several ranks, all end at the same place, before anything of the step is computed (world.py).

    Raises:
        SameWeights: the student matches the teacher's distribution before any update.
        Diverged: three steps in a row without a finite gradient, or a text for which the student's
            logits are not finite; names the last checkpoint.
        DiskFull: a checkpoint or a record could not be written.
        LecternError: what the teacher raised; a checkpoint was saved.
    """
    first_step, began = progress.step, time.monotonic() - progress.wall_seconds
    begins_anew = not progress.record
    evaluate = _evaluator(parts, settings)
    parts.student.train()
    rollouts = _rollouts(parts, settings, progress)
    try:
        with ExitStack() as stack:
            prefetch = _prefetch(parts, settings)
            stack.callback(prefetch.close)
            if rollouts is not None:
                stack.callback(rollouts.close)
            while True:
                step, is_last = progress.step, progress.step >= settings.steps

                evaluation = is_last or step % settings.evaluate_every == 0 or begins_anew
                is_best = False
                if evaluate and evaluation and "loss/val" not in progress.record:
                    is_best = evaluate(progress, is_last)
                is_last = is_last or progress.best.is_over(settings.patience)
                progress.wall_seconds = time.monotonic() - began

                if progress.record:
                    # The record that a checkpoint holds keeps its time when it is written again.
                    reached = progress_metrics(progress, time.time())
                    progress.record = {**reached, **progress.record}
                    with parts.ranks.together():
                        parts.recorder.record(step, progress.record)
                        if step > first_step:
                            _advise(parts, progress)

                checkpoint = is_last or step % settings.checkpoint_every == 0
                keep_best = is_best and settings.patience is not None
                saved = keep_best or (checkpoint and step > first_step)
                if saved:
                    _save(parts, progress, rollouts)

                if is_last:
                    return True
                # Checkpoints are due at the same steps on all ranks; one that was told is enough.
                if saved and any(parts.ranks.totals(parts.stop.at_checkpoint)):
                    return False
                begins_anew = False

                _train_step(parts, settings, progress, prefetch, rollouts)
    except StopRequested:
        _save(parts, progress, rollouts)
        return False
    except Diverged as error:
        raise Diverged(f"{error}; {_way_out(parts)}") from error
    except (SameWeights, DiskFull):
        raise
    except LecternError:
        _save(parts, progress, rollouts)
        raise


def _evaluator(parts: Parts, settings: Settings) -> Callable[[Progress, bool], bool] | None:
    """Returns the function that evaluates; None without validation rows.

    It adds an evaluation's metrics, all or none, to the record of the step just finished, and
    returns True if the evaluation is the best so far, by the metric that the run follows. Its
    second argument says that no step follows.
    """
    validation, teaching, mixed = parts.validation, parts.teaching, parts.mixed
    if validation is None:
        return None
    teacher = None
    if teaching is not None:
        teacher = ValidationTeacher(
            teaching.provider,
            teaching.representation,
            teaching.prefetch_steps,
            teaching.cancel,
            lambda metric, why: parts.recorder.event("left_out", metric=metric, message=why),
            teaching.untaught,
            None if parts.suites is None else parts.suites.calibration,
        )

    @contextmanager
    def each_batch() -> Iterator[None]:
        parts.recorder.doing(EVALUATION)  # each batch is progress
        with parts.ranks.together():
            yield

    def evaluate(progress: Progress, is_last: bool) -> bool:
        began = time.perf_counter()
        if mixed is None:
            sums = evaluation_sums(
                parts.student,
                validation(),
                parts.device,
                parts.stop,
                teacher,
                settings.objective.chunk_tokens,
                each_batch,
            )
            sums = EvaluationSums(*parts.ranks.totals(*sums))
            metrics = sums.metrics()
        else:
            chunk_tokens = settings.objective.chunk_tokens
            sums, metrics = mixed_evaluation(parts, mixed, chunk_tokens, each_batch)
        if parts.suites is not None:
            metrics |= parts.suites.measured(
                sums, parts.stop, lambda: parts.recorder.doing(EVALUATION)
            )
        value = _value_of(settings.followed.name, metrics)
        best = progress.best.after(progress.step, value, settings.followed)
        if parts.samples is not None:
            is_last = is_last or best.is_over(settings.patience)
            lines = parts.samples.lines(parts.student, is_last=is_last)
            with parts.ranks.together():
                parts.samples.write(progress.step, lines)
        metrics["time/evaluation_seconds"] = time.perf_counter() - began
        progress.record.update(metrics)
        progress.best = best
        return progress.best.step == progress.step

    return evaluate


def _value_of(metric: str, metrics: dict[str, float]) -> float:
    """Returns the metric that the run follows; NaN for an infinite KL, which is left out.

    Raises:
        InvalidSpec: the run does not measure it.
    """
    if metric in metrics:
        return metrics[metric]
    if metric == "val/kl":
        return math.nan
    why = f"is {metric}, which the run does not measure; it measures {', '.join(sorted(metrics))}"
    raise InvalidSpec([("evaluation.metric", why)])


def _train_step(
    parts: Parts,
    settings: Settings,
    progress: Progress,
    prefetch: Prefetch | MixedPrefetch,
    rollouts: Rollouts | None,
) -> None:
    """Makes step s = progress.step:

      1. take its rows (each rank its share), a pure function of (seed, s), in micro-batches; the
         teacher was asked about them some steps ago, and is now asked about coming steps;
         of a run with rollouts, the student writes some of them first (writing.py), and they follow
         the rows of data, in micro-batches of their own;
      2. for each micro-batch: compute hidden states, take the teacher's answer, and compute loss
         and gradients over its valid positions, divided by the number of valid positions of the
         whole step on all ranks;
      3. clip the gradient;
      4. set the learning rate of s and update; if loss or gradient is not finite, skip the update
         and count the skip, and end the run after three in a row;
      5. count the step, and collect its metrics.

    A skipped step still counts: the next one has its own rows and learning rate.
    """
    began, waited = time.perf_counter(), _waited(prefetch, rollouts)
    waited_by_teacher = _waited_by_teacher(prefetch)
    step, ranks = progress.step, parts.ranks

    micro_batches = _take(parts, prefetch, rollouts, step)
    num_valid = sum(part.batch.num_valid for part in micro_batches)
    num_tokens = sum(part.batch.num_tokens for part in micro_batches)
    normalizer, num_tokens = map(round, ranks.totals(num_valid, num_tokens))
    if not normalizer:
        raise InvalidRequest(f"the rows of step {step} have no valid position")

    parts.optimizer.zero_grad(set_to_none=True)
    # Every rank must take part in equally many exchanges.
    computed = [part for part in micro_batches if part.batch.num_valid or ranks.size > 1]
    learnt: list[_Learnt] = []
    with _dropout_of(step, ranks.rank, settings.seed, parts.device):
        if parts.mixed is None:
            learnt = [_micro_step(parts, part, settings.objective, normalizer) for part in computed]
            metrics = loss_metrics(learnt, settings.objective, normalizer, ranks)
        else:
            losses = [
                loss
                for part in computed
                for loss in mixed_micro_step(parts, parts.mixed, part, normalizer)
            ]
            metrics = mixed_loss_metrics(losses, parts.mixed, normalizer, ranks)
    if step == 0:
        _require_another_student(parts, settings, micro_batches, metrics, normalizer)

    norm = torch.nn.utils.clip_grad_norm_(parts.student.parameters(), settings.max_grad_norm)
    metrics["optim/grad_norm"] = whole(norm).item()
    metrics["optim/learning_rate"] = settings.learning_rate(step)
    if np.isfinite([metrics["loss/total"], metrics["optim/grad_norm"]]).all():
        set_learning_rate(parts.optimizer, metrics["optim/learning_rate"])
        parts.optimizer.step()
        progress.skipped_in_a_row = 0
    else:
        _skip(parts, progress)
    parts.optimizer.zero_grad(set_to_none=True)

    progress.step += 1
    progress.tokens_seen += num_tokens
    seconds, waited = time.perf_counter() - began, _waited(prefetch, rollouts) - waited
    if rollouts is not None:
        metrics |= _of_rollouts(parts, learnt, rollouts, progress.step, seconds, waited)
    progress.record = {
        **metrics,
        **count_metrics(parts, progress, normalizer),
        **pace_metrics(parts, num_tokens, seconds, waited),
        **memory_metrics(parts.device),
        **(wire_metrics(parts) if parts.mixed is None else mixed_wire_metrics(parts.mixed, ranks)),
        **{
            f"time/teacher_wait_seconds/{name}": after - waited_by_teacher[name]
            for name, after in _waited_by_teacher(prefetch).items()
        },
    }


def _take(
    parts: Parts, prefetch: Prefetch | MixedPrefetch, rollouts: Rollouts | None, step: int
) -> list[MicroBatch]:
    """Returns this rank's micro-batches of the step; an error or a stop ends all ranks."""
    with parts.ranks.together():
        parts.stop.check()
        micro_batches = prefetch.take(step)
    if rollouts is not None:
        rollouts.prepare(step)
        micro_batches += rollouts.micro_batches(step)
    if parts.ranks.size > 1:
        # Wait for the answers now: a missing teacher must end the ranks before any exchange.
        with parts.ranks.together():
            micro_batches = [part.answered() for part in micro_batches]
    return micro_batches


class _Learnt(NamedTuple):
    """A micro-batch after its backward pass; `judged` is None unless the student wrote it."""

    micro_batch: MicroBatch
    loss: StepLoss
    judged: Tensor | None


def _micro_step(
    parts: Parts, micro_batch: MicroBatch, objective: Objective, normalizer: int
) -> _Learnt:
    """Returns the loss of a micro-batch, and accumulates its gradients in the parameters."""
    answer, is_written = micro_batch.answer, isinstance(micro_batch, WrittenBatch)
    if is_written:
        objective = objective.without_cross_entropy()

    def compute(
        hidden_ND: Tensor, head: OutputHead, labels_N: Tensor
    ) -> tuple[StepLoss, Tensor | None]:
        targets = None
        if len(labels_N):
            targets = None if answer is None else answer().to(parts.device)
            loss = distillation_loss(hidden_ND, head, labels_N, targets, objective, normalizer)
        else:
            loss = distillation_loss(hidden_ND, head, labels_N, None, _NOTHING, normalizer)
        return loss, judged(hidden_ND.detach(), head, targets) if is_written else None

    loss, sums = at_valid_positions(parts.student, micro_batch.batch, parts.device, compute)
    loss.total.backward()
    return _Learnt(micro_batch, loss, sums)


def _waited_by_teacher(prefetch: Prefetch | MixedPrefetch) -> dict[str, float]:
    """Returns the same of each of several teachers, by name."""
    return prefetch.waited_seconds_by_teacher if isinstance(prefetch, MixedPrefetch) else {}


def _waited(prefetch: Prefetch | MixedPrefetch, rollouts: Rollouts | None) -> float:
    """Returns the seconds that the loop has waited for answers so far."""
    return prefetch.waited_seconds + (0.0 if rollouts is None else rollouts.waited_seconds)


def _of_rollouts(
    parts: Parts,
    learnt: list[_Learnt],
    rollouts: Rollouts,
    step: int,
    seconds: float,
    waited: float,
) -> dict[str, float]:
    """Returns the metrics of a step's rollouts, after `step` steps, and keeps some of them."""
    batches = [
        LearntBatch(part, loss.kd_N, sums)
        for part, loss, sums in learnt
        if isinstance(part, WrittenBatch) and sums is not None
    ]
    kept = parts.kept_rollouts
    with parts.ranks.together():
        if kept is not None and kept.is_due(step):
            kept.add(step, (one for batch in batches for one in batch.rollouts()))
    return rollout_metrics(batches, rollouts.last, seconds, waited, parts.ranks)


def _require_another_student(
    parts: Parts,
    settings: Settings,
    micro_batches: list[MicroBatch],
    metrics: dict[str, float],
    normalizer: int,
) -> None:
    """Raises SameWeights if the student matches the teacher's distribution before any update."""
    if parts.mixed is not None:
        require_another_student(parts, parts.mixed, micro_batches, metrics)
        return
    if parts.teaching is None or parts.teaching.allow_same_weights:
        return
    temperature = settings.objective.temperature
    require_something_to_learn(
        metrics["loss/kd"],
        settings.objective,
        lambda: _forward_kl(parts, micro_batches, temperature, normalizer),
    )


def _forward_kl(
    parts: Parts, micro_batches: list[MicroBatch], temperature: float, normalizer: int
) -> float:
    """Returns KL(teacher || student) of a step, in nats per valid position, over all ranks."""
    untaught = NOTHING_UNTAUGHT if parts.teaching is None else parts.teaching.untaught
    own = forward_kl_sum(parts.student, micro_batches, parts.device, temperature, untaught)
    split_again(parts.student)  # the update is still to come
    return parts.ranks.totals(own)[0] / normalizer


def _skip(parts: Parts, progress: Progress) -> None:
    """Counts a step without an update. Raises Diverged after too many in a row."""
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    with parts.ranks.together():
        parts.recorder.event("step_skipped", step=progress.step, in_a_row=progress.skipped_in_a_row)
    if progress.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
        return
    raise Diverged(
        f"loss or gradient was not finite in {progress.skipped_in_a_row} steps in a row, the last "
        f"of them step {progress.step}"
    )


def _way_out(parts: Parts) -> str:
    """Returns what is left of a run that diverged, and what to do."""
    saved = parts.checkpoints.steps() if parts.checkpoints is not None else []
    where = f"the last checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint"
    return f"{where}. Start a new run with a lower learning rate"


def _save(parts: Parts, progress: Progress, rollouts: Rollouts | None) -> None:
    if parts.checkpoints is None:
        return
    first = parts.ranks.is_first
    if parts.teaching is not None:
        with parts.ranks.together():
            parts.teaching.before_checkpoint()
    model = gathered(model_tensors(parts.student), keep=first)
    optimizer = gathered(optimizer_tensors(parts.optimizer, parts.student), keep=first)
    in_flight = {}
    if parts.writer is not None and rollouts is not None:
        own = rollouts.in_flight(progress.step)
        in_flight = tensors_of(own, parts.writer, progress.step, parts.ranks)
    with parts.ranks.together():
        if first:
            parts.recorder.before_checkpoint()
            if parts.kept_rollouts is not None:
                parts.kept_rollouts.save()
            state = {**parts.checkpoint_facts, **progress.state()}
            parts.checkpoints.save(progress.step, model, optimizer, state, in_flight)
            parts.recorder.after_checkpoint(progress.step)


def _prefetch(parts: Parts, settings: Settings) -> Prefetch | MixedPrefetch:
    if parts.mixed is not None:
        return mixed_prefetch(parts, parts.mixed, settings)
    teaching, temperature = parts.teaching, settings.objective.temperature

    def ask_about(batch: Batch, step: int) -> TeacherTargets:
        if teaching is None:
            raise ValueError("there is no teacher")
        wanted = of_step(teaching.representation, settings.seed, step)
        if teaching.is_recorded:
            wanted = of_epoch(wanted, int(step / (parts.steps_per_epoch or math.inf) + 1e-9))
        return ask(teaching.provider, batch, wanted, temperature)

    return Prefetch(
        parts.batches,
        None if teaching is None else ask_about,
        micro_batch_sequences=settings.micro_batch_sequences,
        prefetch_steps=0 if teaching is None else teaching.prefetch_steps,
        end=settings.steps,
        stop=parts.stop,
        cancel=(lambda: None) if teaching is None else teaching.cancel,
    )


def _rollouts(parts: Parts, settings: Settings, progress: Progress) -> Rollouts | None:
    """Returns the run's rollouts, those that a checkpoint held in hand; None if it has none."""
    writer, teaching, student = parts.writer, parts.teaching, parts.student
    if writer is None or teaching is None or not isinstance(student, CausalStudent):
        return None
    temperature, provider = settings.objective.temperature, for_new_texts(teaching.provider)

    def ask_about(batch: Batch, step: int) -> TeacherTargets:
        wanted = of_step(teaching.representation, settings.seed, step)
        return ask(provider, batch, wanted, temperature)

    rollouts = Rollouts(
        writer,
        student,
        ask_about,
        micro_batch=settings.micro_batch_sequences,
        ranks=parts.ranks,
        end=settings.steps,
        stop=parts.stop,
        cancel=teaching.cancel,
        progressed=lambda: parts.recorder.doing(STEP),
    )
    if parts.in_flight is not None:
        rollouts.go_on_with(parts.in_flight, progress.step)
    return rollouts


def _advise(parts: Parts, progress: Progress) -> None:
    """Records advice if the run waits too long for its teacher, or writes too long."""
    if parts.mixed is not None:
        for name, share, words in slow_teachers(parts.mixed, progress.record):
            message = f"teacher {name}: {words}"
            parts.recorder.event("teacher_bound", step=progress.step, share=share, message=message)
    of_teacher = None if parts.teaching is None else parts.teaching.advice
    for kind, watch in (("teacher_bound", of_teacher), ("writing_bound", parts.writing_advice)):
        bound = None if watch is None else watch.after(progress.record)
        if bound is not None:
            share = round(bound.share, 3)
            parts.recorder.event(kind, step=progress.step, share=share, message=bound.advice)


@contextmanager
def _dropout_of(step: int, rank: int, seed: int, device: torch.device) -> Iterator[None]:
    """Makes dropout a pure function of (seed, step, rank), and restores the random state."""
    devices = [device] if device.type == "cuda" else []
    numbers = (seed, step, rank) if rank else (seed, step)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(Key.DROPOUT, numbers))
        yield
