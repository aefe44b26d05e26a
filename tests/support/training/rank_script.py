"""One of two ranks: `RANK=0 ... python -m tests.support.training.rank_script FOLDER`.

Computes what test_world.py checks, and writes it to FOLDER/rank-<rank>.json; the first rank also
writes gradients.safetensors.
"""

import copy
import json
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.distributed.tensor import DTensor

from lectern_common.errors import DiskFull, LecternError, TeacherUnavailable
from lectern_models.ranks import whole
from student_trainer.batch import Batch
from student_trainer.objective.loss import Objective, distillation_loss
from student_trainer.ranks.sharding import gathered, placed_like, shard
from student_trainer.ranks.world import Ranks, join_ranks
from student_trainer.run.loop import _forward_kl
from student_trainer.stop import StopRequested
from student_trainer.student.forward import at_valid_positions
from student_trainer.targets import DenseTargets
from student_trainer.teacher.prefetch import MicroBatch
from tests.support.training.parts import Fixed, parts_of
from tests.support.training.rank_cases import (
    OBJECTIVE,
    evaluated,
    rows,
    sampled,
    student,
    targets,
    texts,
)


def ended(ranks: Ranks, problems: dict[int, Exception]) -> list[Any]:
    """Returns what a rank raises if `problems` end some ranks: [class, reason, message]."""
    try:
        with ranks.together():
            if ranks.rank in problems:
                raise problems[ranks.rank]
    except (LecternError, StopRequested) as error:
        return [type(error).__name__, getattr(error, "reason", None), str(error)]
    return []


def gradients(
    ranks: Ranks, tied: bool, micro_batches: int, empty: bool, writer: int | None = None
) -> dict[str, torch.Tensor]:
    """Returns the gradients of a step shared among the ranks, `micro_batches` forwards per rank.

    The rank `writer` alone writes before; None means that all do, unequally.

    Then makes a forward without gradients, as before the first update: it changes nothing.
    """
    split = student(tied)
    assert ranks.mesh is not None
    shard(split, ranks.mesh)
    texts(split, ranks, writer)  # leaves no trace in the gradients
    batch, teacher_BSV = rows(empty_half=empty), targets()
    num_valid = batch.num_valid
    share = len(batch.inputs_BS) // ranks.size
    part, asked = share // micro_batches, list[MicroBatch]()
    for first in range(ranks.rank * share, (ranks.rank + 1) * share, part):
        cut = slice(first, first + part)
        own = Batch(batch.inputs_BS[cut], batch.labels_BS[cut])
        valid_BS = torch.from_numpy(own.valid_BS)
        objective, given = OBJECTIVE, DenseTargets(teacher_BSV[cut][valid_BS])
        compute = partial(
            distillation_loss,
            targets=given if own.num_valid else None,
            objective=objective if own.num_valid else Objective(alpha=1.0, temperature=1.0),
            normalizer=num_valid,
        )
        at_valid_positions(split, own, torch.device("cpu"), compute).total.backward()
        asked.append(MicroBatch(own, partial(copy.copy, given) if own.num_valid else None))
    _forward_kl(parts_of(split, batches=Fixed(batch), ranks=ranks), asked, 2.0, num_valid)
    found = {name: p.grad for name, p in split.named_parameters() if p.grad is not None}
    return gathered(found, keep=ranks.is_first)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ranks = join_ranks(torch.device("cpu"), 2, 0.0)
    said: dict[str, Any] = {"place": [ranks.rank, ranks.size, ranks.is_first]}
    said["totals"] = ranks.totals(0.1 + ranks.rank, 2.0)
    said["from_first"] = ranks.from_first([41 + ranks.rank, -1])
    said["nothing"] = ended(ranks, {})
    said["one"] = ended(ranks, {1: TeacherUnavailable("no teacher; start one")})
    said["two"] = ended(ranks, {0: DiskFull("full"), 1: TeacherUnavailable("gone")})
    said["stop"] = ended(ranks, {0: StopRequested()})
    said["stop and error"] = ended(ranks, {0: StopRequested(), 1: DiskFull("full")})
    said["long"] = ended(ranks, {1: DiskFull("\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 5000)})
    ranks.require_same(data="abc", teacher=None)
    try:
        ranks.require_same(data="abc", teacher=f"t{ranks.rank}")
    except LecternError as error:
        said["different"] = str(error)

    split = student(tied=False)
    before = {name: p.detach().clone() for name, p in split.named_parameters()}
    assert ranks.mesh is not None
    shard(split, ranks.mesh)
    said["whole again"] = all(
        torch.equal(whole(p.detach()), before[name])
        and torch.equal(whole(placed_like(before[name], p)), before[name])
        for name, p in split.named_parameters()
    )
    # First of all, before any forward of the whole student.
    said["written"] = texts(split, ranks)
    said["sharded again"] = all(isinstance(p, DTensor) for p in split.parameters())
    said["evaluated"], said["sampled"] = evaluated(split, ranks), sampled(split, ranks)
    tensors = {}
    for tied in (True, False):
        for micro_batches, empty in ((1, False), (4, False), (1, True)):
            for name, tensor in gradients(ranks, tied, micro_batches, empty).items():
                tensors[f"{tied}/{micro_batches}/{empty}/{name}"] = tensor.contiguous()
    for writer in (0, 1):
        for name, tensor in gradients(ranks, False, 4, False, writer).items():
            tensors[f"written by {writer}/{name}"] = tensor.contiguous()
    if ranks.is_first:
        safetensors.torch.save_file(tensors, folder / "gradients.safetensors")
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(said))
    torch.distributed.monitored_barrier(timeout=timedelta(seconds=60))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
