"""The objective in plain float64, one row at a time: the reference for every faster version.

Legend: V vocabulary, O outcomes, B sequences. s are the student's logits, t the teacher's, T the
temperature, p = softmax(t / T), q = softmax(s / T).

    loss = alpha * CE(s, label) + (1 - alpha) * T^2 * D(p, q)

T^2 keeps the second term's gradient the same size at any T: without it the gradient shrinks as
1/T^2 (Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2,
eq. 4). D is

    forward_kl   KL(p || q), which is Hinton et al.'s soft-target cross entropy minus p's entropy
    reverse_kl   KL(q || p)                           (Gu et al. 2024, "MiniLLM", section 2.1)
    jsd          beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q
                                    (Agarwal et al. 2024, "On-Policy Distillation", section 2)

With `top_k` the outcomes are the teacher's k most likely tokens and one for all other tokens, the
rest: p and q are summed over the rest, never renormalised without it. At k = V there is no rest.

With `draws`, ids drawn from p, D is an estimate of forward_kl: the mean of log(p / q) over the
draws. Its expectation is KL(p || q), and that of its gradient is (q - p) / T (Anshumann et al.
2025, "Sparse Logit Sampling").

A logit of -inf rules a token out: its probability is 0, and 0 log 0 is 0. The teacher rules out
every id that only the student has: its row is padded with -inf. So forward_kl over the student's
ids, of which the teacher has the first V', is sum_{i < V'} p_i log(p_i / q_i) with q over all V,
and its gradient at the others is q_i / T. A loss that is infinite is refused: forward_kl if only
the student rules a token out, reverse_kl if only the teacher does, the cross entropy if the student
rules out the label. jsd is always finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lectern_common.errors import InvalidRequest
from student_trainer.targets import TeacherLogitsProvider

Vector = npt.NDArray[np.float64]


def kd_loss(
    student_logits: npt.ArrayLike,
    teacher_logits: npt.ArrayLike,
    label: int,
    temperature: float,
    alpha: float,
    divergence: str = "forward_kl",
    beta: float | None = None,
    top_k: int | None = None,
    draws: Sequence[int] | None = None,
) -> float:
    """Returns the loss of one row, in nats.

    Args:
        student_logits: [V].
        teacher_logits: [V], not divided by any temperature.
        label: id of the next token, 0 <= label < V.
        temperature: T > 0; only for the D term, the cross entropy is at T = 1.
        alpha: weight of the cross entropy, 0 to 1.
        divergence: "forward_kl", "reverse_kl" or "jsd".
        beta: weight of the teacher in jsd's mixture, 0 < beta < 1; None otherwise.
        top_k: number of tokens kept; None keeps all.
        draws: ids drawn from p, at least one, each repeated as often as drawn; only with forward_kl
            and without top_k. None means D is computed from p itself.

    Raises:
        InvalidRequest: an argument is out of its range, or the loss is infinite.
    """
    s, t = _rows(student_logits, teacher_logits, label, temperature, alpha)
    cross_entropy = -log_softmax(s)[label] if alpha > 0 else 0.0
    log_p, log_q, _ = _outcomes(s / temperature, t / temperature, top_k)
    if draws is None:
        distance = _divergence(log_p, log_q, divergence, beta)
    else:
        drawn = _drawn(draws, len(s), divergence, beta, top_k)
        log_p_V, log_q_V = log_softmax(t / temperature), log_softmax(s / temperature)
        distance = float(np.mean(log_p_V[drawn] - log_q_V[drawn]))
    _require_finite(cross_entropy, distance if alpha < 1 else 0.0, divergence)
    if alpha == 1:
        return float(cross_entropy)
    return float(alpha * cross_entropy + (1 - alpha) * temperature**2 * distance)


def kd_logit_gradient(
    student_logits: npt.ArrayLike,
    teacher_logits: npt.ArrayLike,
    label: int,
    temperature: float,
    alpha: float,
    divergence: str = "forward_kl",
    beta: float | None = None,
    top_k: int | None = None,
    draws: Sequence[int] | None = None,
) -> Vector:
    """Returns d kd_loss / d student_logits [V]; arguments and Raises as `kd_loss`.

        alpha (softmax(s) - onehot(label)) + (1 - alpha) T^2 dD/ds

    For forward_kl over all tokens dD/ds = (q - p) / T (Hinton et al. 2015, eq. 2); with draws,
    their frequencies replace p.
    """
    kd_loss(
        student_logits, teacher_logits, label, temperature, alpha, divergence, beta, top_k, draws
    )  # raises
    s, t = _rows(student_logits, teacher_logits, label, temperature, alpha)
    cross_entropy = np.exp(log_softmax(s))
    cross_entropy[label] -= 1
    if draws is not None:
        drawn = _drawn(draws, len(s), divergence, beta, top_k)
        frequency_V = np.bincount(drawn, minlength=len(s)) / len(drawn)
        distance = (np.exp(log_softmax(s / temperature)) - frequency_V) / temperature
        return np.asarray(alpha * cross_entropy + (1 - alpha) * temperature**2 * distance)
    if alpha == 1:
        return np.asarray(cross_entropy)
    log_p, log_q, outcome_V = _outcomes(s / temperature, t / temperature, top_k)
    by_outcome = _divergence_gradient(log_p, log_q, divergence, beta)
    # A token moves its outcome by its share of that outcome: 1 for all but the rest's tokens.
    log_q_V = log_softmax(s / temperature)
    possible_V = log_q_V > -np.inf
    share_V = np.zeros(len(s))
    share_V[possible_V] = np.exp(log_q_V[possible_V] - log_q[outcome_V][possible_V])
    distance = by_outcome[outcome_V] * share_V / temperature
    return np.asarray(alpha * cross_entropy + (1 - alpha) * temperature**2 * distance)


@dataclass(frozen=True)
class KdStep:
    """Losses [B] and logit gradients [B, V], a row per sequence; the batch's are means over B."""

    losses: Vector
    gradients: npt.NDArray[np.float64]

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


def kd_step(
    teacher: TeacherLogitsProvider,
    input_ids: Sequence[Sequence[int]],
    labels: Sequence[int],
    temperature: float,
    alpha: float,
    student_logits: Sequence[npt.ArrayLike],
) -> KdStep:
    """Returns each sequence's loss and logit gradient at its last position, with forward KL.

    Args:
        teacher: called once, for the whole batch.
        input_ids: B >= 1 sequences.
        labels: the token that follows each sequence.
        temperature: as in `kd_loss`.
        alpha: as in `kd_loss`.
        student_logits: the student's logits [V] at the last position of each sequence.

    Raises:
        InvalidRequest: lengths differ, or an argument is out of its range.
    """
    if not len(input_ids) == len(labels) == len(student_logits) or not len(labels):
        raise InvalidRequest(
            f"got {len(input_ids)} sequences, {len(labels)} labels and {len(student_logits)} "
            "student rows; expected the same number of each, at least one"
        )
    rows = list(zip(student_logits, teacher.logits_for_batch(input_ids), labels, strict=True))
    return KdStep(
        np.array([kd_loss(s, t, label, temperature, alpha) for s, t, label in rows]),
        np.array([kd_logit_gradient(s, t, label, temperature, alpha) for s, t, label in rows]),
    )


def log_softmax(logits_V: Vector) -> Vector:
    """Returns log softmax, shifted by the largest logit so that nothing overflows."""
    shifted = logits_V - logits_V.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _divergence(log_p: Vector, log_q: Vector, name: str, beta: float | None) -> float:
    weight = _mixture_weight(name, beta)
    if name == "forward_kl":
        return _kl(log_p, log_q)
    if name == "reverse_kl":
        return _kl(log_q, log_p)
    log_m = _log_mixture(log_p, log_q, weight)
    return weight * _kl(log_p, log_m) + (1 - weight) * _kl(log_q, log_m)


def _divergence_gradient(log_p: Vector, log_q: Vector, name: str, beta: float | None) -> Vector:
    """Returns q_o (f_o - sum_j q_j f_j) [O] with f = dD/dq: dD/d(logit of outcome o)."""
    weight = _mixture_weight(name, beta)
    p, q = np.exp(log_p), np.exp(log_q)
    if name == "forward_kl":  # f = -p / q
        return np.asarray(q - p)
    possible, gradient = q > 0, np.zeros(len(q))
    if name == "reverse_kl":  # f = log(q / p) + 1
        log_ratio = log_q[possible] - log_p[possible]
        gradient[possible] = q[possible] * (log_ratio - _kl(log_q, log_p))
        return gradient
    log_m = _log_mixture(log_p, log_q, weight)  # f = (1 - beta) log(q / m)
    log_ratio = log_q[possible] - log_m[possible]
    gradient[possible] = (1 - weight) * q[possible] * (log_ratio - _kl(log_q, log_m))
    return gradient


def _kl(log_a: Vector, log_b: Vector) -> float:
    """Returns KL(a || b); an outcome of probability 0 under a contributes 0."""
    a = np.exp(log_a)
    possible = a > 0
    return float(np.sum(a[possible] * (log_a[possible] - log_b[possible])))


def _log_mixture(log_p: Vector, log_q: Vector, beta: float) -> Vector:
    return np.asarray(np.logaddexp(np.log(beta) + log_p, np.log1p(-beta) + log_q))


def _require_finite(cross_entropy: float, distance: float, divergence: str) -> None:
    if np.isinf(cross_entropy):
        raise InvalidRequest("the cross entropy is infinite: the student rules out the label")
    if np.isinf(distance):
        side = "teacher" if divergence == "reverse_kl" else "student"
        raise InvalidRequest(
            f"{divergence} is infinite: only the {side} rules out a token", "divergence"
        )


def _outcomes(
    s_V: Vector, t_V: Vector, top_k: int | None
) -> tuple[Vector, Vector, npt.NDArray[np.intp]]:
    """Returns log p [O], log q [O], and each token's outcome [V]."""
    vocab_size = len(t_V)
    kept = vocab_size if top_k is None else top_k
    if not 1 <= kept <= vocab_size:
        raise InvalidRequest(f"top_k is {top_k}; it must be 1 to {vocab_size}", "top_k")
    falling = np.argsort(-t_V, kind="stable")  # equal logits: lower id first
    top, rest = falling[:kept], falling[kept:]
    outcome_V = np.full(vocab_size, kept)
    outcome_V[top] = np.arange(kept)
    log_p_V, log_q_V = log_softmax(t_V), log_softmax(s_V)
    if not len(rest):
        return log_p_V[top], log_q_V[top], outcome_V
    log_p_rest = np.logaddexp.reduce(log_p_V[rest])
    log_q_rest = np.logaddexp.reduce(log_q_V[rest])
    return np.append(log_p_V[top], log_p_rest), np.append(log_q_V[top], log_q_rest), outcome_V


def _rows(
    student_logits: npt.ArrayLike,
    teacher_logits: npt.ArrayLike,
    label: int,
    temperature: float,
    alpha: float,
) -> tuple[Vector, Vector]:
    s, t = np.asarray(student_logits, np.float64), np.asarray(teacher_logits, np.float64)
    if s.ndim != 1 or s.shape != t.shape or not len(s):
        raise InvalidRequest(f"student row {s.shape} and teacher row {t.shape} must both be [V]")
    for whose, row in (("student", s), ("teacher", t)):
        if not np.isfinite(row.max()):  # nan, inf, or all ruled out
            raise InvalidRequest(f"the {whose}'s logits are not finite (only -inf, a mask, may be)")
    if not 0 <= label < len(s):
        raise InvalidRequest(f"label {label} is not an id below {len(s)}", "label")
    if not (temperature > 0 and np.isfinite(temperature)):
        raise InvalidRequest(f"temperature is {temperature}; it must be > 0", "temperature")
    if not 0 <= alpha <= 1:
        raise InvalidRequest(f"alpha is {alpha}; it must be 0 to 1", "alpha")
    return s, t


def _drawn(
    draws: Sequence[int], vocab_size: int, divergence: str, beta: float | None, top_k: int | None
) -> npt.NDArray[np.intp]:
    _mixture_weight(divergence, beta)
    if divergence != "forward_kl" or top_k is not None:
        raise InvalidRequest("draws work only with forward_kl and without top_k", "draws")
    if not draws or not all(0 <= drawn < vocab_size for drawn in draws):
        raise InvalidRequest(f"draws must be one or more ids below {vocab_size}", "draws")
    return np.asarray(draws, np.intp)


def _mixture_weight(name: str, beta: float | None) -> float:
    """Returns beta for jsd; else 0, which is not used."""
    if name not in ("forward_kl", "reverse_kl", "jsd"):
        raise InvalidRequest(f"unknown divergence {name}", "divergence")
    if name != "jsd":
        if beta is not None:
            raise InvalidRequest(f"beta has no effect with divergence {name}", "beta")
        return 0.0
    if beta is None or not 0 < beta < 1:
        raise InvalidRequest(f"beta is {beta}; jsd needs 0 < beta < 1", "beta")
    return beta
