"""Perplexity, and agreement with a teacher: sums over the predicted positions of held-out text.

    loss                    cross entropy, nats per token; perplexity is its exponential
    bits_per_byte           all nats, in bits, by the bytes of the text
    kl                      KL(teacher || model), nats per token
    top1_agreement          share of positions with the same likeliest token
    calibration_error       expected calibration error (evaluation/calibration.py) of the model's
                            likeliest token, right if it is the teacher's likeliest
    label_calibration_error the same, right if it is the token that follows

All at temperature 1.

Legend: N predicted positions, n those of a chunk, V vocabulary, D hidden size, C bins.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lectern_common.checks.vocabularies import NOTHING_UNTAUGHT, Untaught
from lectern_common.errors import NotFound, TokenizerMismatch
from lectern_common.spec.suites import AgreementOptions
from lectern_common.stages.status import Report
from lectern_common.tokens.tokenizer_map import differing_ids
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.batch import Batch
from student_trainer.evaluating.kept import Kept
from student_trainer.evaluating.subject import Subject
from student_trainer.evaluating.texts import HeldOut
from student_trainer.evaluation.calibration import binned, calibration_error
from student_trainer.objective.loss import Objective, auto_chunk_tokens, distillation_loss
from student_trainer.stop import Stop
from student_trainer.student.forward import ask, at_valid_positions
from student_trainer.targets import (
    IGNORE_INDEX,
    DenseTargets,
    HiddenTargets,
    TargetsProvider,
    TeacherTargets,
    joined,
    likeliest_ids,
)

_HIDDEN = Representation("hidden")
_KL_ONLY = Objective(alpha=0.0, temperature=1.0, may_be_infinite=True)
Sums = dict[str, Any]


def perplexity(
    subject: Subject, text: HeldOut, *, work: Path | None, stop: Stop, report: Report
) -> dict[str, Any]:
    """Returns loss, perplexity and bits per byte of a model on held-out text.

    Raises:
        StopRequested: a stop was requested; what is done is kept in `work`.
        LecternError: what a server raised.
    """
    sums = _summed(
        "perplexity",
        text,
        lambda batch: _scores(subject, batch),
        work=work,
        stop=stop,
        report=report,
    )
    loss = sums["ce"] / sums["positions"]
    return {**_of_loss(loss, sums["ce"], text), "tokens": int(sums["positions"]), **text.facts}


def agreement(
    subject: Subject,
    teacher: Subject,
    text: HeldOut,
    options: AgreementOptions,
    *,
    work: Path | None,
    stop: Stop,
    report: Report,
) -> dict[str, Any]:
    """Returns how close a model is to a teacher on held-out text.

    Raises:
        TokenizerMismatch: an id of the text means something else to the teacher.
        NotFound: the tokens of one of them are unknown.
        StopRequested, LecternError: as perplexity says.
    """
    untaught = _untaught(subject, teacher, text)
    provider = teacher.provider(subject.vocab_size)
    wanted = Representation(options.representation, options.top_k)
    sums = _summed(
        "agreement",
        text,
        lambda batch: _scores(
            subject,
            batch,
            _asked(provider, batch, wanted, teacher.max_tokens),
            untaught,
            options.bins,
        ),
        work=work,
        stop=stop,
        report=report,
    )
    n = sums["positions"]
    kl = sums["kl"] / n
    found = {
        "kl": kl if math.isfinite(kl) else None,
        "top1_agreement": sums["agreeing"] / n,
        "calibration_error": calibration_error(sums["confidence"], sums["right"], n),
        "label_calibration_error": calibration_error(sums["confidence"], sums["label_right"], n),
        "loss": sums["ce"] / n,
        "teacher_loss": sums["teacher_ce"] / n if "teacher_ce" in sums else None,
        "tokens": int(n),
        "kl_is": wanted.kd_is,
        "vocabulary": untaught.note,
        "teacher": {"words": teacher.words, **teacher.facts},
    }
    return {**found, **text.facts}


def _of_loss(loss: float, nats: float, text: HeldOut) -> dict[str, Any]:
    num_bytes = None if text.bytes_of is None else sum(text.bytes_of)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": nats / math.log(2) / num_bytes if num_bytes else None,
        "bytes": num_bytes,
    }


def _summed(
    name: str,
    text: HeldOut,
    scores: Callable[[Batch], Sums],
    *,
    work: Path | None,
    stop: Stop,
    report: Report,
) -> Sums:
    """Returns the sums over all batches; those that `work` has already are not computed again."""
    path = None if work is None else work / f"{name}.jsonl"
    counted = f"batches of {name}"  # by suite, so that a second one does not begin at less
    kept = Kept(path, _identity(text.batches))
    for batch in text.batches[len(kept.entries) :]:
        report(counted, len(kept.entries), len(text.batches))
        stop.check()
        kept.add(scores(batch))
    report(counted, len(text.batches), len(text.batches))
    names = kept.entries[0].keys()
    return {key: _sum([entry[key] for entry in kept.entries]) for key in names}


def _sum(values: Sequence[Any]) -> Any:
    """Returns the sum of numbers, or of lists of numbers, entry by entry."""
    if isinstance(values[0], list):
        return [math.fsum(column) for column in zip(*values, strict=True)]
    return math.fsum(math.inf if value is None else value for value in values)


def _identity(batches: Sequence[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(str(batch.inputs_BS.shape).encode())
        digest.update(batch.inputs_BS.tobytes() + batch.labels_BS.tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _scores(
    subject: Subject,
    batch: Batch,
    answers: TeacherTargets | None = None,
    untaught: Untaught = NOTHING_UNTAUGHT,
    bins: int = 1,
) -> Sums:
    """Returns the sums over the predicted positions of a batch; `answers` are the teacher's."""
    targets = None if answers is None else answers.to(subject.device)

    def compute(hidden_ND: Tensor, head: OutputHead, labels_N: Tensor) -> Sums:
        sums = _own_sums(hidden_ND, head, labels_N, targets, bins)
        if targets is not None:
            objective = _KL_ONLY.leaving_out(untaught)
            kl = distillation_loss(hidden_ND, head, labels_N, targets, objective, 1).kd_sum.item()
            sums["kl"] = kl if math.isfinite(kl) else None
        return sums

    if subject.student is not None:
        return at_valid_positions(subject.student, batch, subject.device, compute)
    if subject.server is None:
        raise ValueError("a subject has a model or a server")
    own = _asked(subject.server, batch, _HIDDEN, subject.max_tokens).to(subject.device)
    if not isinstance(own, HiddenTargets):
        raise TypeError(f"expected HiddenTargets, got {type(own).__name__}")
    labels_N = torch.from_numpy(batch.labels_BS[batch.valid_BS]).to(subject.device)
    return compute(own.hidden_ND, own.head, labels_N)


def _asked(
    provider: TargetsProvider, batch: Batch, wanted: Representation, max_tokens: int | None
) -> TeacherTargets:
    """Returns a teacher's answers about a batch, asked for in parts that it takes."""
    rows, length = batch.inputs_BS.shape
    if max_tokens is not None:
        rows = max(1, min(rows, max_tokens // length))
    return joined([ask(provider, part, wanted, 1.0) for part in batch.micro_batches(rows)])


def _own_sums(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    targets: TeacherTargets | None,
    bins: int,
) -> Sums:
    """Returns the sums that need the model's logits, of which only a chunk's exist at a time."""
    size = auto_chunk_tokens(head.vocab_size, hidden_ND.device)
    sums: Sums = {"positions": len(labels_N), "ce": 0.0}
    names = ("confidence", "right", "label_right")
    counts = {name: np.zeros(bins) for name in names}
    agreeing, teacher_ce = 0, 0.0
    for start in range(0, len(labels_N), size):
        stop = min(start + size, len(labels_N))
        labels_n = labels_N[start:stop]
        log_p_nV = head.logits(hidden_ND[start:stop]).log_softmax(-1)
        sums["ce"] -= log_p_nV.gather(1, labels_n[:, None]).double().sum().item()
        if targets is None:
            continue
        theirs = targets.rows(start, stop)
        top = log_p_nV.max(-1)
        right_n = top.indices == likeliest_ids(theirs)
        agreeing += int(right_n.sum())
        label_n = top.indices == labels_n
        for name, added in zip(
            names, binned(bins, top.values.exp(), right_n, label_n), strict=True
        ):
            counts[name] += added
        teacher_ce += _cross_entropy(theirs, labels_n)
    if targets is not None:
        sums["agreeing"] = agreeing
        sums |= {key: values.tolist() for key, values in counts.items()}
        if not math.isnan(teacher_ce):
            sums["teacher_ce"] = teacher_ce
    return sums


def _cross_entropy(targets: TeacherTargets, labels_n: Tensor) -> float:
    """Returns the teacher's own, summed; NaN if its answers do not tell it."""
    if isinstance(targets, HiddenTargets):
        logits = targets.head.logits(targets.hidden_ND)
    elif isinstance(targets, DenseTargets):
        logits = targets.logits_NV
    else:
        return math.nan
    if int(labels_n.max()) >= logits.shape[-1]:
        return math.nan
    return -float(logits.log_softmax(-1).gather(1, labels_n[:, None]).double().sum())


def _untaught(subject: Subject, teacher: Subject, text: HeldOut) -> Untaught:
    """Returns the ids in which the teacher has no say. Raises unless the text uses none of them."""
    tokens, theirs = subject.tokens(), teacher.tokens()
    for one, whose in ((tokens, subject.words), (theirs, teacher.words)):
        if one is None:
            raise NotFound(
                f"{whose} has no tokenizer, so the tokens of the two cannot be compared; put its "
                "tokenizer.json into its folder"
            )
    differing = differing_ids(tokens or {}, theirs or {})
    width = min(subject.vocab_size, teacher.vocab_size)
    used: set[int] = set()
    for batch in text.batches:
        used.update(np.unique(batch.inputs_BS).tolist(), np.unique(batch.labels_BS).tolist())
    used.discard(IGNORE_INDEX)
    wrong = sorted(one for one in used if one in differing or one >= width)
    if wrong:
        names = ", ".join(map(str, wrong[:5]))
        raise TokenizerMismatch(
            f"the text uses ids that do not mean the same to {subject.words} and {teacher.words}, "
            f"{names} first: only models with one tokenizer agree or disagree; compare their "
            "bits_per_byte of suite perplexity instead"
        )
    ids = tuple(sorted(one for one in differing if one < width))
    only = subject.vocab_size - width
    note = None
    if ids or only:
        note = f"the teacher has no say in {len(ids) + only} ids, of which the text uses none"
    return Untaught(only, ids, note)
