"""Separate documents in a row: what the student computes, what the teacher is asked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.batch import Batch
from student_trainer.data.rows import StreamRows, batch_from
from student_trainer.data.stream import TokenStream
from student_trainer.student.forward import ask, at_valid_positions
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TeacherTargets,
    TopKTargets,
)
from tests.support.training.parts import CPU, VOCAB_SIZE, tiny_student, tiny_teacher

S = 12
STARTS = [0, 3, 4, 11, 12, 20]


def batch(*, apart: bool, learnt: npt.NDArray[np.uint8] | None = None) -> Batch:
    """Returns two rows of documents; row 1 begins within one."""
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 2 * S + 1).astype(np.uint32)
    mask = None if learnt is None else TokenStream([learnt])  # type: ignore[list-item]
    rows = StreamRows(TokenStream([tokens]), S, mask, np.array(STARTS) if apart else None)
    return batch_from(rows, [0, 1])


def documents(whole: Batch) -> list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
    """Returns (row, inputs, valid) of each document's part of a row, split by hand."""
    cuts = {0: [(0, 3), (3, 4), (4, 11), (11, 12)], 1: [(0, 8), (8, 12)]}
    return [
        (row, whole.inputs_BS[row, first:last], whole.valid_BS[row, first:last])
        for row, spans in cuts.items()
        for first, last in spans
    ]


def hidden_and_labels(student: object, given: Batch) -> tuple[Tensor, Tensor]:
    def compute(hidden_ND: Tensor, head: OutputHead, labels_N: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_ND, labels_N

    return at_valid_positions(student, given, CPU, compute)  # type: ignore[arg-type]


class Listening:
    """Passes requests on and records them."""

    def __init__(self, teacher: object) -> None:
        self._teacher = teacher
        self.sequences: list[list[int]] = []

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        self.sequences += [ids.tolist() for ids in sequences]
        return self._teacher.score(sequences, positions, representation, temperature)  # type: ignore[attr-defined,no-any-return]


def test_labels_across_a_boundary_do_not_count() -> None:
    valid = batch(apart=True).valid_BS
    assert np.flatnonzero(~valid[0]).tolist() == [2, 3, 10, 11]
    assert np.flatnonzero(~valid[1]).tolist() == [7]
    assert batch(apart=False).valid_BS.all()


def test_the_student_computes_each_document_separately(tmp_path: Path) -> None:
    student = tiny_student(tmp_path, layers=2)
    given = batch(apart=True)
    with torch.no_grad():
        hidden_ND, labels_N = hidden_and_labels(student, given)
        expected = [
            student.hidden_states(torch.from_numpy(inputs)[None])[0][torch.from_numpy(valid)]
            for _, inputs, valid in documents(given)
        ]
    torch.testing.assert_close(hidden_ND, torch.cat(expected), atol=1e-6, rtol=0)
    assert labels_N.tolist() == given.labels_BS[given.valid_BS].tolist()


@pytest.mark.parametrize(
    "representation",
    [
        Representation("hidden"),
        Representation("dense"),
        Representation("top_k", top_k=5),
        Representation("sampled", num_draws=8, seed=3),
    ],
    ids=lambda representation: representation.kind,
)
def test_the_teacher_is_asked_about_each_document_separately(
    tmp_path: Path, representation: Representation
) -> None:
    teacher = tiny_teacher(tmp_path, layers=2)
    listening = Listening(teacher)
    given = batch(apart=True)
    together = ask(listening, given, representation, 2.0)
    alone = [
        teacher.score([inputs.astype(np.uint32)], [valid], representation, 2.0)
        for _, inputs, valid in documents(given)
        if valid.any()
    ]
    assert len(together) == given.num_valid == sum(len(part) for part in alone)
    for ours, theirs in zip(tensors(together), zip(*map(tensors, alone), strict=True), strict=True):
        torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-6, rtol=0)
    # Documents of one token have no valid label, so they are not sent.
    assert [len(ids) for ids in listening.sequences] == [3, 7, 8, 4]


def test_a_row_is_sent_whole_if_documents_attend_to_each_other(tmp_path: Path) -> None:
    listening = Listening(tiny_teacher(tmp_path))
    given = batch(apart=False)
    ask(listening, given, Representation("dense"), 1.0)
    assert listening.sequences == given.inputs_BS.tolist()


def test_positions_that_are_not_learnt_are_not_requested(tmp_path: Path) -> None:
    listening = Listening(tiny_teacher(tmp_path))
    learnt = np.zeros(2 * S + 1, np.uint8)
    learnt[[6, 7, 22]] = 1
    given = batch(apart=True, learnt=learnt)
    assert len(ask(listening, given, Representation("dense"), 1.0)) == given.num_valid == 3
    assert [len(ids) for ids in listening.sequences] == [7, 4]


def tensors(targets: TeacherTargets) -> list[Tensor]:
    """Returns the tensors of the targets, row by row."""
    if isinstance(targets, DenseTargets):
        return [targets.logits_NV]
    if isinstance(targets, HiddenTargets):
        return [targets.hidden_ND]
    if isinstance(targets, TopKTargets):
        return [targets.logits_NK, targets.ids_NK, targets.log_rest_t_N]
    assert isinstance(targets, SampledTargets)
    return [targets.ids_R, targets.counts_R, targets.log_probs_R]
