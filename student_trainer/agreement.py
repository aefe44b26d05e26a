"""Whether a student's likeliest token is the teacher's, a chunk of positions at a time.

Legend: N positions, n positions of a chunk, V vocabulary, D hidden size.
"""

import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest
from lectern_models.output_head import OutputHead
from student_trainer.objective import auto_chunk_tokens
from student_trainer.targets import DenseTargets, HiddenTargets, TeacherTargets, TopKTargets


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
