"""Refuses an objective that is infinite because of ids that one side rules out, a logit of -inf.

Such a value is no fault of the numbers, and no later step would mend it, so it must not look like a
step that diverged. Values that are not finite for any other reason are left to the caller.

Legend: N rows, V the student's vocabulary.
"""

import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest
from lectern_models.logits.masks import rules_out
from lectern_models.logits.output_head import OutputHead
from student_trainer.targets import DenseTargets, HiddenTargets, TeacherTargets, TopKTargets

REVERSE_KL_IS_INFINITE = (
    "reverse_kl is infinite, because the teacher rules out {what} (a logit of -inf) and the "
    "student does not; use forward_kl or jsd"
)
FORWARD_KL_IS_INFINITE = (
    "forward_kl is infinite, because the student rules out {what} (a logit of -inf) and the "
    "teacher does not; use jsd, or another student"
)
CROSS_ENTROPY_IS_INFINITE = (
    "the cross entropy is infinite, because the student rules out id {label} (a logit of -inf), "
    "which is a label; use data without it, or another student"
)


def require_finite(
    losses_2N: Tensor,
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    targets: TeacherTargets | None,
    divergence: str,
) -> None:
    """Raises InvalidRequest, naming the first row and id, if a ruled-out id makes a loss infinite.

    Args:
        losses_2N: cross entropy and divergence of each row.
        hidden_ND: the student's; `head` maps them to its logits.
        head: the student's.
        labels_N: the token that follows each row.
        targets: the teacher's; None without one.
        divergence: the objective's.
    """
    infinite_2N = losses_2N.isposinf()
    if not bool(infinite_2N.any()):
        return
    row = int(infinite_2N.any(0).nonzero()[0])
    of_ce, of_kd = infinite_2N[:, row].tolist()
    student_V = head.logits(hidden_ND[row : row + 1])[0].isneginf()
    label = int(labels_N[row])
    if of_ce and bool(student_V[label]):
        raise InvalidRequest(f"row {row}: {CROSS_ENTROPY_IS_INFINITE.format(label=label)}")
    if not of_kd or targets is None:
        return
    one = targets.rows(row, row + 1)
    if divergence == "reverse_kl":
        what = _only_the_teacher(one, student_V)
        sentence = REVERSE_KL_IS_INFINITE
    else:
        what = _only_the_student(one, student_V)
        sentence = FORWARD_KL_IS_INFINITE
    if what is not None:
        raise InvalidRequest(f"row {row}: {sentence.format(what=what)}", "divergence")


def _only_the_teacher(one: TeacherTargets, student_V: Tensor) -> str | None:
    """Returns in words what only the teacher rules out in a row; None if nothing."""
    kept_V = ~student_V
    if isinstance(one, TopKTargets):
        ids_K = one.ids_NK[0]
        taken_K = rules_out(one.logits_NK[0]) & kept_V[ids_K]
        if bool(taken_K.any()):
            return f"id {int(ids_K[taken_K][0])}"
        kept_V[ids_K] = False
        rest_is_out = bool(rules_out(one.log_rest_t_N).all()) and bool(kept_V.any())
        return f"every id beyond its top {len(ids_K)}" if rest_is_out else None
    return _first(_teacher_V(one, len(student_V)) & kept_V)


def _only_the_student(one: TeacherTargets, student_V: Tensor) -> str | None:
    """Returns in words what only the student rules out in a row; None if nothing."""
    if isinstance(one, TopKTargets):
        ids_K = one.ids_NK[0]
        taken_K = student_V[ids_K] & ~rules_out(one.logits_NK[0])
        if bool(taken_K.any()):
            return f"id {int(ids_K[taken_K][0])}"
        return f"every id beyond the teacher's top {len(ids_K)}" if bool(student_V.any()) else None
    if isinstance(one, (DenseTargets, HiddenTargets)):
        return _first(student_V & ~_teacher_V(one, len(student_V)))
    drawn_R = one.ids_R[student_V[one.ids_R]]
    return f"id {int(drawn_R[0])}" if len(drawn_R) else None


def _teacher_V(one: TeacherTargets, vocab_size: int) -> Tensor:
    """Returns the ids that a row of logits rules out, with those that the teacher lacks."""
    if isinstance(one, HiddenTargets):
        logits_V = one.head.logits(one.hidden_ND.to(one.head.weight_VD.device))[0]
    elif isinstance(one, DenseTargets):
        logits_V = one.logits_NV[0]
    else:
        raise ValueError("only logits and hidden states cover every id")
    ruled_out_V = torch.ones(vocab_size, dtype=torch.bool, device=logits_V.device)
    ruled_out_V[: len(logits_V)] = rules_out(logits_V)
    return ruled_out_V


def _first(ids_V: Tensor) -> str | None:
    return f"id {int(ids_V.nonzero()[0])}" if bool(ids_V.any()) else None
