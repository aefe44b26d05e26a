"""Argmax agreement, against numpy over all logits at once."""

from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.errors import InvalidRequest
from lectern_models.logits.output_head import HeadTransform, OutputHead
from lectern_models.logits.top_k import ordered_top_k
from student_trainer.evaluation.evaluation import num_agreeing
from student_trainer.targets import DenseTargets, HiddenTargets, SampledTargets, TopKTargets

N, D, V = 23, 6, 17


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STUDENT = OutputHead(drawn(V, D, seed=1), drawn(V, seed=2), HeadTransform(scale=0.5, soft_cap=3.0))
TEACHER = OutputHead(torch.cat([STUDENT.weight_VD, drawn(V, D, seed=3)], 1), drawn(V, seed=5))
HIDDEN = drawn(N, D, seed=4)
THEIRS = torch.cat([HIDDEN, drawn(N, D, seed=6)], 1)


def expected() -> int:
    ours = HIDDEN.numpy() @ STUDENT.weight_VD.numpy().T + drawn(V, seed=2).numpy()
    theirs = THEIRS.numpy() @ TEACHER.weight_VD.numpy().T + drawn(V, seed=5).numpy()
    return int((ours.argmax(1) == theirs.argmax(1)).sum())


def targets_of(kind: str) -> Any:
    if kind == "hidden":
        return HiddenTargets(THEIRS, TEACHER)
    logits_NV = TEACHER.logits(THEIRS)
    if kind == "dense":
        return DenseTargets(logits_NV)
    values, ids = ordered_top_k(logits_NV, 1)
    return TopKTargets(values, ids, torch.zeros(N), torch.zeros(N), 1.0, V)


@pytest.mark.parametrize("kind", ["dense", "hidden", "top_k"])
@pytest.mark.parametrize("chunk_tokens", [1, 7, N, 1000, None])
def test_agreement_is_the_same_at_any_chunk_size(kind: str, chunk_tokens: int | None) -> None:
    assert 0 < expected() < N
    assert num_agreeing(HIDDEN, STUDENT, targets_of(kind), chunk_tokens).item() == expected()


def test_of_equal_logits_the_lower_id_counts_on_both_sides() -> None:
    flat = OutputHead(torch.zeros(V, D))
    lowest = torch.zeros(N, V)
    other = torch.zeros(N, V)
    other[:, 3] = 1e-6
    assert num_agreeing(HIDDEN, flat, DenseTargets(lowest)).item() == N
    assert num_agreeing(HIDDEN, flat, DenseTargets(other)).item() == 0


def test_no_positions_give_no_agreement() -> None:
    nothing = DenseTargets(torch.empty(0, V))
    assert num_agreeing(HIDDEN[:0], STUDENT, nothing).item() == 0


def test_draws_and_a_wrong_number_of_rows_are_refused() -> None:
    ids = torch.zeros(N, dtype=torch.int64)
    draws = SampledTargets(ids, ids + 1, torch.zeros(N), np.arange(N + 1), 1, 1.0, V)
    with pytest.raises(InvalidRequest, match="draws do not reveal"):
        num_agreeing(HIDDEN, STUDENT, draws)
    with pytest.raises(InvalidRequest, match="expected 23 teacher rows, got 22"):
        num_agreeing(HIDDEN, STUDENT, targets_of("dense").rows(0, 22))
