"""Checks before a run's first update: memory, the teacher's answers, something to learn.

`lectern train --dry-run` checks memory and teacher in the same way, with a student without weights
(dry_run.py).

If the student equals its teacher before it has learnt anything, there is nothing to distil. Equal
weights have equal hashes, whatever dtype they are loaded in (compatibility.py). The check here
finds what hashes do not show: adapters that change nothing yet, converted files, renamed copies.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lectern_common.checks.needs.estimate import computation_of
from lectern_common.checks.needs.memory import (
    FreeMemory,
    MemoryEstimate,
    ModelShape,
    estimate_memory,
    free_host_bytes,
    memory_fit,
)
from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT, Untaught
from lectern_common.errors import Incompatible, LecternError, Misconfigured, SameWeights, error_of
from lectern_common.logs import get_logger
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.address import is_one_server
from lectern_common.wire.formats import Representation
from lectern_models.logits.masks import rules_out
from lectern_models.logits.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.batch import Batch
from student_trainer.data.rows import batch_from, permutation
from student_trainer.data.select import Data
from student_trainer.objective.loss import Objective, auto_chunk_tokens, distillation_loss
from student_trainer.ranks.world import local_ranks
from student_trainer.run.parts import Teaching
from student_trainer.stop import Stop
from student_trainer.student.forward import at_valid_positions
from student_trainer.student.shape import shape_of
from student_trainer.student.student import CausalStudent, Student
from student_trainer.targets import TargetsProvider, TeacherTargets
from student_trainer.teacher.prefetch import MicroBatch
from student_trainer.teacher.probe import Answering, ProbeRows, probe_teacher
from student_trainer.teacher.recorded import RecordedTeacher

_log = get_logger()


def memory_needed(
    spec: RunSpec,
    shape: ModelShape,
    model: teacher_pb2.Model | None,
    device: torch.device,
    longest_prompt: int = 0,
) -> MemoryEstimate:
    """Returns what each device needs for the run.

    Args:
        spec: the run's.
        shape: the student's.
        model: the teacher; None without one.
        device: the student's.
        longest_prompt: that the student continues, in tokens; 0 without rollouts.
    """
    chunk_tokens = auto_chunk_tokens(shape.vocab_size, device)
    on_cuda = device.type == "cuda"
    computed = computation_of(
        spec,
        model,
        shape.vocab_size,
        chunk_tokens,
        on_cuda=on_cuda,
        longest_prompt=longest_prompt,
    )
    return estimate_memory(shape, computed)


def memory_of_sources(
    spec: RunSpec,
    shape: ModelShape,
    models: Mapping[str, teacher_pb2.Model],
    device: torch.device,
) -> MemoryEstimate:
    """Returns what each device needs for a run of several sources.

    The heads of all teachers are in memory at a time. Answers are those of the teacher that sends
    most, as if every row were of it.

    Args:
        models: the teachers by name.
    """
    sources = spec.data.sources or []
    estimates = {
        source.teacher: memory_needed(own, shape, models.get(source.teacher or ""), device)
        for source, own in zip(sources, spec.by_source(), strict=True)
    }
    return replace(
        max(estimates.values(), key=lambda one: one.total),
        teacher_head=sum(one.teacher_head for one in estimates.values()),
        answers=max(one.answers for one in estimates.values()),
    )


def free_memory(device: torch.device, held_bytes: int = 0) -> FreeMemory:
    """Returns the free memory of device and host, counting `held_bytes` of the run as free."""
    host = free_host_bytes()
    if device.type != "cuda":
        return FreeMemory("cpu", host + held_bytes, host + held_bytes)
    free, _ = torch.cuda.mem_get_info(device)
    # What torch has reserved but does not use is free for the run.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return FreeMemory(str(device), free + unused + held_bytes, host)


def require_memory(
    estimate: MemoryEstimate, free: FreeMemory, processes: int = 1
) -> dict[str, Any]:
    """Returns the estimate's parts and what is free, for the run's events; warns if it is tight.

    Raises:
        Misconfigured: what is certainly needed does not fit; the message says what to set.
    """
    fit = memory_fit(estimate, free, processes)
    if fit.problem is not None:
        raise Misconfigured(fit.problem)
    if fit.warning is not None:
        _log.warning("memory_may_not_suffice", message=fit.warning)
    if fit.note is not None:
        _log.info("memory_not_known", message=fit.note)
    found = {**estimate.parts(), "free": free.device_bytes, "warning": fit.warning}
    return found if fit.note is None else {**found, "note": fit.note}


def require_promises(
    teacher: TargetsProvider,
    answering: Answering,
    batch: Batch,
    representation: Representation,
    temperature: float,
    *,
    may_mask: bool = True,
) -> str | None:
    """Probes the teacher, and returns the finding in words (teacher/probe.py).

    Returns None, without asking, if no row of `batch`, the run's first, has a valid position.

    Raises:
        Incompatible: it masks ids, but `may_mask` is False.
        TeacherError: the teacher's answers are inconsistent.
        LecternError: as TargetsProvider.score says.
    """
    rows = ProbeRows.of_batch(batch)
    if not rows.sequences:
        return None
    return probe_teacher(teacher, rows, representation, temperature, answering, may_mask=may_mask)


def check_before_training(
    spec: RunSpec,
    student: CausalStudent,
    teaching: Teaching | None,
    first: Batch,
    device: torch.device,
    *,
    asks_teacher: bool,
    longest_prompt: int = 0,
) -> dict[str, Any]:
    """Checks memory and teacher, and returns the findings for the run's events.

    Args:
        spec: the run's.
        student: whole, on its device.
        teaching: the run's teacher; None without one.
        first: the run's first rows, which the teacher is probed with.
        device: that the student is trained on.
        asks_teacher: also probe the teacher; only one rank does, and not in a resumed run.
        longest_prompt: that the student continues, in tokens; 0 without rollouts.

    Raises:
        Misconfigured: there is not enough memory.
        TeacherError: the teacher's answers are inconsistent.
        LecternError: as TargetsProvider.score says.
    """
    model = None if teaching is None else teaching.model
    estimate = memory_needed(spec, shape_of(student.model), model, device, longest_prompt)
    found: dict[str, Any] = {"memory": _require_memory_of(student, estimate, device)}
    if teaching is None or model is None or spec.teacher is None or not asks_teacher:
        return found
    if teaching.is_recorded:  # its answers were probed when it was made
        return found
    found["probe"] = _probed(spec, student, teaching, model, first)
    return found


def check_sources_before_training(
    spec: RunSpec,
    student: CausalStudent,
    teachings: Mapping[str, Teaching],
    firsts: Mapping[str, tuple[RunSpec, Batch]],
    device: torch.device,
    *,
    asks_teacher: bool,
) -> dict[str, Any]:
    """Does what check_before_training does, for a run of several sources.

    Args:
        teachings: the run's teachers by name.
        firsts: for each of them the spec of a source, and rows of it to probe the teacher with.
    """
    models = {
        name: teaching.model for name, teaching in teachings.items() if teaching.model is not None
    }
    estimate = memory_of_sources(spec, shape_of(student.model), models, device)
    found: dict[str, Any] = {"memory": _require_memory_of(student, estimate, device)}
    probes = {}
    for name, (of_source, first) in firsts.items():
        teaching = teachings[name]
        if asks_teacher and not teaching.is_recorded:
            try:
                probes[name] = _probed(of_source, student, teaching, models[name], first)
            except LecternError as error:
                raise error_of(error.reason, f"teacher {name}: {error}") from error
    return {**found, "probes": probes} if probes else found


def _require_memory_of(
    student: CausalStudent, estimate: MemoryEstimate, device: torch.device
) -> dict[str, Any]:
    """Returns what require_memory does, of a student that is there, and its teachers' heads."""
    held = sum(p.numel() * p.element_size() for p in student.parameters()) + estimate.teacher_head
    # On the CPU, all ranks of this machine are at about this point, and hold equally much.
    processes = local_ranks()
    held *= 1 if device.type == "cuda" else processes
    return require_memory(estimate, free_memory(device, held), processes)


def _probed(
    spec: RunSpec,
    student: CausalStudent,
    teaching: Teaching,
    model: teacher_pb2.Model,
    first: Batch,
) -> str | None:
    """Returns what a probe of the spec's teacher server found; see require_promises."""
    address = "" if spec.teacher is None else spec.teacher.address
    answering = Answering.of_model(
        model,
        min(student.vocab_size, model.logit_width),
        one_server=is_one_server(address),
    )
    said = require_promises(
        teaching.provider,
        answering,
        first,
        teaching.representation,
        spec.objective.temperature,
        # A student may mask the same ids; the first step will tell.
        may_mask=spec.objective.divergence != "reverse_kl" or _masks(student.output_head()),
    )
    if teaching.take_received is not None:
        teaching.take_received()  # resets the count: the probe is not part of a step
    return said


def require_covered(spec: RunSpec, teacher: RecordedTeacher, data: Data, stop: Stop) -> None:
    """Raises unless a record holds the answers about every row of a run; reads no answer.

    Of training rows, those that its steps will see.

    Raises:
        StopRequested: a stop was requested meanwhile.
        Incompatible: a row is not in the record; the message names it.
    """
    training = data.training
    seen = spec.schedule.steps * spec.batch.sequences_per_step
    indices: Sequence[int] = range(len(training))
    if seen < len(training):
        indices = sorted(permutation(spec.seed, 0, len(training))[:seen].tolist())
    require_rows_covered(spec, teacher, data, indices, stop)


def require_rows_covered(
    spec: RunSpec, teacher: RecordedTeacher, data: Data, indices: Sequence[int], stop: Stop
) -> None:
    """Does what require_covered does, of these training rows and of the validation set."""
    if spec.teacher is None:
        return
    asked, training, began = spec.teacher.asks_for, data.training, time.monotonic()
    sets = (
        ("training", training, indices, spec.objective.temperature),
        ("validation", data.validation, range(len(data.validation)), 1.0),
    )
    for name, rows, chosen, temperature in sets:
        for index in chosen:
            stop.check()
            for ids_S, valid_S in batch_from(rows, [index]).sequences():
                if not teacher.covers(ids_S, valid_S, asked, temperature):
                    raise Incompatible(
                        f"row {index} of the {name} set, which begins {_words(ids_S)}, is not in "
                        f"the record {spec.teacher.record}: it was made of "
                        f"{_made_of(teacher, data)}; use those rows, or make another record"
                    )
    _log.info(
        "record_covers",
        record=spec.teacher.record,
        training_rows=len(indices),
        validation_rows=len(data.validation),
        seconds=round(time.monotonic() - began, 3),
    )


def _words(ids_S: npt.NDArray[np.uint32]) -> str:
    return f"[{', '.join(str(token) for token in ids_S[:8].tolist())}]"


def _made_of(teacher: RecordedTeacher, data: Data) -> str:
    contexts = teacher.record.manifest.contexts
    if not set(data.sha256s) <= set(contexts.data_sha256s):
        return f"{contexts.data_path} with other contents than the run's data has now"
    return (
        f"{contexts.data_path} with data.seq_len {contexts.seq_len}, and another "
        "data.validation_fraction, evaluation.max_sequences or data.attention_across_documents, or "
        "by a run of fewer steps"
    )


def _masks(head: OutputHead) -> bool:
    return head.bias_V is not None and bool(rules_out(head.bias_V).any())


# Divergence (in nats, times T^2) up to which an untrained student counts as equal to its teacher.
SAME_DISTRIBUTION_NATS = 1e-5


def require_something_to_learn(
    kd: float, objective: Objective, forward_kl: Callable[[], float]
) -> None:
    """Raises SameWeights unless the distributions of the first step differ.

    At a high temperature a divergence shrinks by 1 / T^2. An estimate from draws is 0 between equal
    distributions, and may be below 0 between different ones. jsd vanishes between any two
    distributions as its beta approaches 0 or 1, so a small jsd alone proves nothing.

    Args:
        kd: the divergence of the objective, before any update.
        objective: the run's.
        forward_kl: returns KL(teacher || student) of the same step at the same temperature.

    Raises:
        SameWeights: the distributions are equal.
    """
    weight = max(1.0, objective.temperature**2)
    # NaN does not count as equal: the loop skips such a step.
    if not abs(kd) * weight <= SAME_DISTRIBUTION_NATS:
        return
    if objective.divergence == "jsd":
        kd = forward_kl()
        if abs(kd) * weight > SAME_DISTRIBUTION_NATS:
            return
    raise SameWeights(
        f"the student already matches the teacher's distribution ({kd:.1e} nats apart before the "
        "first update), so there is nothing to distil; use another student or teacher, or set "
        "teacher.allow_same_weights"
    )


@torch.no_grad()
def forward_kl_sum(
    student: Student,
    micro_batches: Sequence[MicroBatch],
    device: torch.device,
    temperature: float,
    untaught: Untaught = NOTHING_UNTAUGHT,
) -> float:
    """Returns KL(teacher || student) summed over the valid positions; all ranks call it.

    Raises:
        LecternError: as an answer's function says.
    """
    objective = Objective(0.0, temperature, may_be_infinite=True).leaving_out(untaught)
    total = 0.0
    for part in micro_batches:
        answer = part.answer

        def compute(
            hidden_ND: Tensor,
            head: OutputHead,
            labels_N: Tensor,
            answer: Callable[[], TeacherTargets] | None = answer,
        ) -> Tensor:
            if answer is None:
                return torch.zeros((), dtype=torch.float64)
            targets = answer().to(device)
            return distillation_loss(
                hidden_ND, head, labels_N, targets, objective, len(labels_N)
            ).kd_sum

        total += at_valid_positions(student, part.batch, device, compute).item()
    return total
