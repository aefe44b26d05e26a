"""How sure the student is of what it writes, and how often the teacher would choose the same.

Legend: N positions, n those that are looked at, V vocabulary, D hidden size.
"""

import torch
from torch import Tensor

from lectern_models.logits.output_head import OutputHead
from student_trainer.targets import SampledTargets, TeacherTargets, joined, likeliest_ids

# Of each micro-batch: a fraction of what the objective computes, and enough for a curve.
_MOST_POSITIONS = 128
NUM_SUMS = 4


@torch.no_grad()
def judged(hidden_ND: Tensor, head: OutputHead, targets: TeacherTargets | None) -> Tensor:
    """Returns float64 [4]: positions, their entropy summed, positions compared, agreeing ones.

    Looks at up to 128 evenly spaced positions. The entropy is the student's at temperature 1, in
    nats; they agree if both have the same likeliest id. Draws do not reveal the teacher's.

    Args:
        hidden_ND: the student's final-norm hidden states.
        head: the student's.
        targets: the teacher's at the same positions; None if there are no positions.
    """
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=hidden_ND.device)
    if targets is None or not len(hidden_ND):
        return sums
    stride = -(-len(hidden_ND) // _MOST_POSITIONS)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        logits_nV = head.logits(hidden_ND[::stride])
        log_q_nV = logits_nV.log_softmax(-1)
        # An id that is ruled out has no part in it: 0 * -inf.
        entropy = -(log_q_nV.exp() * log_q_nV.masked_fill(log_q_nV.isneginf(), 0)).sum()
        sums[0], sums[1] = len(logits_nV), entropy
        if not isinstance(targets, SampledTargets):
            theirs = joined([targets.rows(i, i + 1) for i in range(0, len(targets), stride)])
            sums[2] = len(logits_nV)
            sums[3] = (logits_nV.argmax(-1) == likeliest_ids(theirs)).sum()
    return sums
