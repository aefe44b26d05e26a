"""Is a student its teacher before it has learnt anything? Then there is nothing to distil.

Equal weights have equal hashes, whatever they are loaded in (compatibility.py). This finds out what
hashes do not show: adapters that change nothing yet, converted files, a copy under another name.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lectern_common.errors import SameWeights
from lectern_models.output_head import OutputHead
from student_trainer.micro_batch import at_valid_positions
from student_trainer.objective import Objective, distillation_loss
from student_trainer.prefetch import MicroBatch
from student_trainer.students import Student
from student_trainer.targets import TeacherTargets

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
