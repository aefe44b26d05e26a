"""Two processes over gloo: how errors and stops reach both, and that their gradients add up."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lectern_common.errors import DiskFull, Misconfigured
from lectern_common.ranks import RENDEZVOUS
from student_trainer.batch import Batch
from student_trainer.objective.loss import distillation_loss
from student_trainer.ranks.world import Ranks, join_ranks
from student_trainer.student.forward import at_valid_positions
from student_trainer.targets import DenseTargets
from tests.support.servers import ROOT
from tests.support.training.rank_cases import (
    OBJECTIVE,
    evaluated,
    rows,
    sampled,
    student,
    targets,
    texts,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the two ranks of rank_script.py."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.training.rank_script", str(folder)],
            cwd=ROOT,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "OMP_NUM_THREADS": "1",
                RENDEZVOUS: str(folder / "rendezvous"),
            },
        )
        for rank in (0, 1)
    ]
    try:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return folder


def said(folder: Path, what: str) -> list[Any]:
    return [json.loads((folder / f"rank-{rank}.json").read_text())[what] for rank in (0, 1)]


@pytest.mark.long
def test_ranks_know_their_place_and_add_up(folder: Path) -> None:
    assert said(folder, "place") == [[0, 2, True], [1, 2, False]]
    assert said(folder, "totals") == [[0.1 + 1.1, 4.0]] * 2
    assert said(folder, "from_first") == [[41, -1]] * 2


def test_ranks_evaluate_and_sample_like_one_process(folder: Path) -> None:
    """One of the two has rows without labels, and makes as many forwards as the other."""
    alone = evaluated(student(tied=False), Ranks())
    assert alone.keys() == {"loss/val", "val/kl", "val/top1_agreement"}
    first, second = said(folder, "evaluated")
    assert first == second == pytest.approx(alone, rel=1e-6)
    assert said(folder, "sampled") == [sampled(student(tied=False), Ranks()), []]


def test_ranks_write_texts_of_unequal_lengths_without_waiting_for_each_other(folder: Path) -> None:
    """The second rank writes more and longer ones; then the parameters are sharded again."""
    first, second = said(folder, "written")
    assert [len(ids) for ids in first + second] == [3] + [7] * 4
    alone = texts(student(tied=False), Ranks())
    assert first == alone
    assert second[0][:3] == alone[0]
    assert said(folder, "sharded again") == [True, True]


def test_an_error_on_one_rank_ends_all_with_the_same_reason(folder: Path) -> None:
    assert said(folder, "nothing") == [[], []]
    gone = ["TeacherUnavailable", "teacher_unavailable", "no teacher; start one"]
    assert said(folder, "one") == [[*gone[:2], gone[2] + " (rank 1)"], gone]
    first, second = said(folder, "two")
    assert first == ["DiskFull", "disk_full", "full"]
    assert second == ["DiskFull", "disk_full", "full (rank 0)"]
    assert said(folder, "stop") == [["StopRequested", None, ""]] * 2
    # A stop at the same moment does not hide an error.
    assert [heard[:2] for heard in said(folder, "stop and error")] == [
        ["DiskFull", "disk_full"]
    ] * 2
    told, whole = (heard[2] for heard in said(folder, "long"))
    assert len(whole) == 5000
    assert 20 < len(told) < 2048 and told.startswith(whole[:20]) and told.endswith("... (rank 1)")


def test_ranks_that_have_read_different_things_are_refused(folder: Path) -> None:
    expected = "rank 1 has teacher t1, but rank 0 has t0; every rank needs the same"
    assert said(folder, "different") == [expected] * 2


def test_split_parameters_are_whole_when_gathered(folder: Path) -> None:
    assert said(folder, "whole again") == [True, True]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_one_by_32_four_by_8_and_two_ranks_of_16_give_equal_gradients(
    folder: Path, tied: bool, micro_batches: int
) -> None:
    """The mean is over the valid positions of the step, however its rows are shared out."""
    expected = gradients(tied, micro_batches=1)
    for found in (gradients(tied, micro_batches=4), of_ranks(folder, tied, micro_batches)):
        require_equal(found, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_a_rank_whose_rows_have_no_valid_position_adds_nothing(folder: Path, tied: bool) -> None:
    require_equal(of_ranks(folder, tied, 1, empty=True), gradients(tied, 1, empty=True))


@pytest.mark.parametrize("writer", [0, 1])
def test_ranks_learn_together_after_only_one_of_them_has_written(folder: Path, writer: int) -> None:
    require_equal(tensors_of(folder, f"written by {writer}/"), gradients(False, 1))


def test_one_process_exchanges_nothing_and_raises_the_original_error() -> None:
    ranks = Ranks()
    assert (ranks.totals(1.5, 2.0), ranks.from_first([7, -1])) == ([1.5, 2.0], [7, -1])
    full = DiskFull("full")
    with pytest.raises(DiskFull) as caught, ranks.together():
        raise full
    assert caught.value is full
    ranks.require_same(data="x")


def test_more_ranks_than_in_the_spec_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(Misconfigured, match=r"device\.count is 2, but 4 ranks were started"):
        join_ranks(torch.device("cpu"), 2, 0.0)


def gradients(tied: bool, micro_batches: int, empty: bool = False) -> dict[str, Tensor]:
    """The gradients of one process."""
    alone, batch, teacher_BSV = student(tied), rows(empty), targets()
    part = len(batch.inputs_BS) // micro_batches
    for first in range(0, len(batch.inputs_BS), part):
        cut = slice(first, first + part)
        own = Batch(batch.inputs_BS[cut], batch.labels_BS[cut])
        given = DenseTargets(teacher_BSV[cut][torch.from_numpy(own.valid_BS)])
        compute = partial(
            distillation_loss, targets=given, objective=OBJECTIVE, normalizer=batch.num_valid
        )
        at_valid_positions(alone, own, torch.device("cpu"), compute).total.backward()
    return {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}


def of_ranks(
    folder: Path, tied: bool, micro_batches: int, empty: bool = False
) -> dict[str, Tensor]:
    return tensors_of(folder, f"{tied}/{micro_batches}/{empty}/")


def tensors_of(folder: Path, prefix: str) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(folder / "gradients.safetensors")
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def require_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name] - tensor).norm() / tensor.norm()
        assert difference <= 2e-6, name
