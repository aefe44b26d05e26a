"""What is checked of a run before its first update: memory, the teacher's answers, and whether the
student is its teacher already.

Memory and teacher are checked the same way by `lectern train --dry-run`, of a student without
weights (dry_run.py).

Is a student its teacher before it has learnt anything, there is nothing to distil. Equal weights
have equal hashes, whatever they are loaded in (compatibility.py). This finds out what hashes do not
show: adapters that change nothing yet, converted files, a copy under another name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import structlog
import torch
from torch import Tensor

from lectern_common.checks.estimate import computation_of
from lectern_common.checks.memory import (
    FreeMemory,
    MemoryEstimate,
    ModelShape,
    estimate_memory,
    free_host_bytes,
    memory_fit,
)
from lectern_common.errors import Misconfigured, SameWeights
from lectern_common.spec.run_spec import RunSpec
from lectern_common.teacher.address import is_one_server
from lectern_common.wire.formats import Representation
from lectern_models.output_head import OutputHead
from protos import teacher_pb2
from student_trainer.batch import Batch
from student_trainer.objective.loss import Objective, auto_chunk_tokens, distillation_loss
from student_trainer.ranks.world import local_ranks
from student_trainer.run.parts import Teaching
from student_trainer.student.forward import at_valid_positions
from student_trainer.student.shape import shape_of
from student_trainer.student.student import CausalStudent, Student
from student_trainer.targets import TargetsProvider, TeacherTargets
from student_trainer.teacher.prefetch import MicroBatch
from student_trainer.teacher.probe import Answering, ProbeRows, probe_teacher

_log = structlog.get_logger()


def memory_needed(
    spec: RunSpec, shape: ModelShape, model: teacher_pb2.Model | None, device: torch.device
) -> MemoryEstimate:
    """Returns what each device needs for the run; `model` is the teacher's, None without one."""
    chunk_tokens = auto_chunk_tokens(shape.vocab_size, device)
    on_cuda = device.type == "cuda"
    computed = computation_of(spec, model, shape.vocab_size, chunk_tokens, on_cuda=on_cuda)
    return estimate_memory(shape, computed)


def free_memory(device: torch.device, held_bytes: int = 0) -> FreeMemory:
    """Returns what there is on the device and on the host, `held_bytes` of the run included."""
    host = free_host_bytes()
    if device.type != "cuda":
        return FreeMemory("cpu", host + held_bytes, host + held_bytes)
    free, _ = torch.cuda.mem_get_info(device)
    # What torch has taken and does not use is free for the run.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return FreeMemory(str(device), free + unused + held_bytes, host)


def require_memory(
    estimate: MemoryEstimate, free: FreeMemory, processes: int = 1
) -> dict[str, Any]:
    """Returns the estimate's parts and what is free, for the run's events; warns where it is tight.

    Raises:
        Misconfigured: what is certain to be needed does not fit; says what to set.
    """
    fit = memory_fit(estimate, free, processes)
    if fit.problem is not None:
        raise Misconfigured(fit.problem)
    if fit.warning is not None:
        _log.warning("memory_may_not_suffice", message=fit.warning)
    return {**estimate.parts(), "free": free.device_bytes, "warning": fit.warning}


def require_promises(
    teacher: TargetsProvider,
    answering: Answering,
    batch: Batch,
    representation: Representation,
    temperature: float,
) -> str | None:
    """Returns in words what the teacher's answers were found to be, see teacher/probe.py.

    None where no row of `batch`, the run's first, has a valid position: nothing is asked.

    Raises:
        TeacherError: they are not what they promise.
        LecternError: as TargetsProvider.score says.
    """
    rows = ProbeRows.of_batch(batch)
    if not rows.sequences:
        return None
    return probe_teacher(teacher, rows, representation, temperature, answering)


def check_before_training(
    spec: RunSpec,
    student: CausalStudent,
    teaching: Teaching | None,
    batch_at: Callable[[int], Batch],
    device: torch.device,
    *,
    asks_teacher: bool,
) -> dict[str, Any]:
    """Returns what was found, for the run's events.

    Args:
        spec: the run's.
        student: whole, on its device.
        teaching: by its teacher; None without one.
        batch_at: gives the rows of a step.
        device: where it is trained.
        asks_teacher: probe the teacher too: one rank of all does, and a resumed run has done so.

    Raises:
        Misconfigured: memory does not suffice.
        TeacherError: the teacher's answers are not what they promise.
        LecternError: as TargetsProvider.score says.
    """
    model = None if teaching is None else teaching.model
    estimate = memory_needed(spec, shape_of(student.model), model, device)
    held = sum(p.numel() * p.element_size() for p in student.parameters()) + estimate.teacher_head
    # On the CPU all of this machine's processes of the run are about here, and hold as much each.
    processes = local_ranks()
    held *= 1 if device.type == "cuda" else processes
    found: dict[str, Any] = {
        "memory": require_memory(estimate, free_memory(device, held), processes)
    }
    if teaching is None or model is None or spec.teacher is None or not asks_teacher:
        return found
    answering = Answering.of_model(
        model, student.vocab_size, one_server=is_one_server(spec.teacher.address)
    )
    found["probe"] = require_promises(
        teaching.provider,
        answering,
        batch_at(0),
        teaching.representation,
        spec.objective.temperature,
    )
    if teaching.take_received is not None:
        teaching.take_received()  # no part of any step
    return found


# Divergence (in nats, times T^2) at or under which a student that has not learnt yet is the
# teacher.
SAME_DISTRIBUTION_NATS = 1e-5


def require_something_to_learn(
    kd: float, objective: Objective, forward_kl: Callable[[], float]
) -> None:
    """Returns where the first step's distributions differ.

    Whatever differs does so by 1 / T^2 of it at a high temperature. An estimate from draws is 0
    between equal distributions, and may be below 0 between others. jsd vanishes between any two as
    its beta nears 0 or 1, so that one alone proves nothing.

    Args:
        kd: the divergence of the objective, before any update.
        objective: the run's.
        forward_kl: gives KL(teacher || student) of the same step at the same temperature.

    Raises:
        SameWeights: they do not.
    """
    weight = max(1.0, objective.temperature**2)
    # NaN is no sign of equal ones either: the loop skips such a step.
    if not abs(kd) * weight <= SAME_DISTRIBUTION_NATS:
        return
    if objective.divergence == "jsd":
        kd = forward_kl()
        if abs(kd) * weight > SAME_DISTRIBUTION_NATS:
            return
    raise SameWeights(
        f"the student already gives the teacher's distribution ({kd:.1e} nats apart before the "
        "first update): there is nothing to distil. Take another student or teacher, or set "
        "teacher.allow_same_weights"
    )


@torch.no_grad()
def forward_kl_sum(
    student: Student,
    micro_batches: Sequence[MicroBatch],
    device: torch.device,
    temperature: float,
) -> float:
    """Returns KL(teacher || student) summed over the valid positions; all ranks call it.

    Raises:
        LecternError: as an answer's function says.
    """
    objective, total = Objective(alpha=0.0, temperature=temperature), 0.0
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
